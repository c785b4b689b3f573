"""All singular values of a weight in float64, without vectors.

    G = W W^T or W^T W, of the smaller side k,    s_i = sqrt(lambda_i(G))

Rounding moves an eigenvalue of G by about eps sigma_1^2, and s_i by eps (sigma_1 / s_i)^2 / 2 of itself. Where
that is not small at the smallest value, W itself is reduced (LAPACK's gesdd without vectors), which moves each value
by about eps sigma_1.

Accuracy: every value is within 1e-6 of itself or 1e-12 sigma_1 of the exact one, whichever is larger.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from milora.linalg.certificate import Certificate
from milora.linalg.svd import SVD, cast_values, prepare

_RELATIVE = 1e-6
# A Gram product and its eigenvalues cost less than a reduction of W only where one side is clearly longer.
_LONGER = 1.5


def singular_values(W: Tensor) -> Tensor:  # (m, n) -> (k,)
    """All k = min(m, n) singular values, falling, in float64; the module says how exact they are.

    Raises:
        MiloraError: W is no matrix, is empty, or holds NaN or Inf.
    """
    return _singular_values(*prepare(W))[0]


def values(W: Tensor) -> SVD:  # (m, n)
    """All singular values as an SVD with U (m, 0) and Vh (0, n): float64 for a float64 weight, else float32.

    Raises:
        MiloraError: as `singular_values`; a value beyond float32 (float64).
    """
    W, magnitude = prepare(W)
    S, algorithm = _singular_values(W, magnitude)
    m, n = W.shape
    resolution = float(S[0]) * torch.finfo(torch.float64).eps * math.sqrt(max(m, n))
    certificate = Certificate(algorithm, 0.0, 0.0, 0.0, 0.0)
    return SVD(W.new_zeros(m, 0), cast_values(S, W.dtype), W.new_zeros(0, n), resolution, certificate)


def _singular_values(W: Tensor, magnitude: float) -> tuple[Tensor, str]:  # (m, n) -> (k,)
    # A power of two scales exactly, and keeps the squares within float64's range.
    scale = math.ldexp(1.0, max(math.frexp(magnitude)[1] - 1, -1000))
    W = W.double() / scale  # (m, n)
    S, algorithm = None, "values_gram"
    if W.is_cuda or max(W.shape) >= _LONGER * min(W.shape):
        S = _by_gram(W)
    if S is None:
        S, algorithm = torch.linalg.svdvals(W), "values_lapack"
    return S * scale, algorithm


def _by_gram(W: Tensor) -> Tensor | None:  # (m, n) -> (k,)
    """Roots of the Gram matrix's eigenvalues, or None where the smallest would be inexact."""
    W = W if W.shape[0] <= W.shape[1] else W.T  # (k, longer)
    eigenvalues = torch.linalg.eigvalsh(W @ W.T).flip(0)  # (k,)
    largest, smallest = float(eigenvalues[0]), float(eigenvalues[-1])
    error = torch.finfo(torch.float64).eps * math.sqrt(max(W.shape)) * largest
    return eigenvalues.sqrt() if smallest > 0 and error <= 2 * _RELATIVE * smallest else None

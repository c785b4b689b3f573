"""Any part of a weight, by eigenvectors of its Gram matrix in float64: no iteration of ours, nothing to converge.

    G = W^T W = V diag(sigma^2) V^T,     U = W V / sigma

V is right to eps64 in every direction, also for the smallest values, because ||W v|| is measured with W itself. Where
sigma is zero W V / sigma is noise; there U is taken from the complement of W's range, which is the left null space.
On a CPU only the wanted eigenvectors are computed (LAPACK's syevr through scipy), which is twice as fast as all.
"""

from __future__ import annotations

from typing import Any

import scipy.linalg
import torch
from torch import Tensor

from milora.linalg.arithmetic import torch_threads
from milora.linalg.krylov import orthonormal
from milora.linalg.parts import Part, random_block
from milora.linalg.products import gram, times

# Below this share of sigma_1 the left vector W v / sigma has fewer than six digits.
ZERO = 1e-10


def part(A: Tensor, indices: Tensor, generator: torch.Generator) -> Part:  # A (m, n), m >= n; indices (r,) rising
    """The triplets at `indices`, 0 being the largest singular value."""
    A64 = A.to(torch.float64)
    G = gram(A64)
    V = _eigenvectors(G, A.shape[1] - 1 - indices.flip(0)).flip(1)  # eigh's order is rising
    Q, R = torch.linalg.qr(times(A64, V))
    P, S, Qh = torch.linalg.svd(R)
    U, V = Q @ P, V @ Qh.T
    largest = float(G.diagonal().max()) ** 0.5  # from below
    zero = largest * ZERO >= S
    if bool(zero.any()):
        theta, vectors = torch.linalg.eigh(G)
        inside = vectors[:, theta > (ZERO * largest) ** 2]
        U = torch.cat([U[:, ~zero], _left_null_space(A64, inside, int(zero.sum()), generator)], dim=1)
    return Part(U, S, V, "gram")


def _eigenvectors(G: Tensor, indices: Tensor) -> Tensor:  # (n, n) lower triangle, (r,) rising -> (n, r)
    """Eigenvectors of G at the given places of the rising eigenvalues."""
    first, last = int(indices[0]), int(indices[-1])
    if G.is_cuda or last - first + 1 > G.shape[0] // 2:
        return torch.linalg.eigh(G).eigenvectors[:, indices.to(G.device)]
    with torch_threads:
        # The lower triangle of a row-major matrix is the upper one of the column-major matrix that LAPACK sees.
        found: Any = scipy.linalg.eigh(
            G.T.numpy(), lower=False, subset_by_index=[first, last], driver="evr", check_finite=False
        )
    return torch.from_numpy(found[1])[:, indices - first]


def _left_null_space(A: Tensor, V: Tensor, count: int, generator: torch.Generator) -> Tensor:  # A (m, n), V (n, k)
    """Orthonormal vectors (m, count) outside the range of A, V being its right vectors with sigma above zero."""
    within = orthonormal(A @ V)  # (m, k)
    X = random_block(A.T, count, generator)
    for _ in range(2):
        X = orthonormal(X - within @ (within.T @ X))
    return X

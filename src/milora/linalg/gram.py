"""Any part of a weight, by the eigenvectors of its Gram matrix in float64: no iteration, nothing to converge.

    G = W^T W = V diag(sigma^2) V^T,     U = W V / sigma

V is right to eps64 in every direction, also for the smallest values, because ||W v|| is measured with W itself. Where
sigma is zero W V / sigma is noise; there U is taken from the complement of W's range, which is the left null space.
"""

from __future__ import annotations

import torch
from torch import Tensor

from milora.linalg.krylov import orthonormal, times
from milora.linalg.parts import Part, random_block

# Below this share of sigma_1 the left vector W v / sigma has fewer than six digits.
ZERO = 1e-10


def part(A: Tensor, indices: Tensor, generator: torch.Generator) -> Part:  # A (m, n), m >= n; indices (r,) rising
    """The triplets at `indices`, 0 being the largest singular value."""
    A64 = A.to(torch.float64)
    theta, vectors = torch.linalg.eigh(A64.T @ A64)
    theta, vectors = theta.flip(0), vectors.flip(1)
    V = vectors[:, indices.to(A.device)]
    Q, R = torch.linalg.qr(times(A64, V))
    P, S, Qh = torch.linalg.svd(R)
    U, V = Q @ P, V @ Qh.T
    sigma = theta.clamp_min(0).sqrt()
    zero = (S / float(sigma[0]) if float(sigma[0]) else S) <= ZERO
    if bool(zero.any()):
        inside = sigma > ZERO * float(sigma[0])
        U = torch.cat([U[:, ~zero], _left_null_space(A64, vectors[:, inside], int(zero.sum()), generator)], dim=1)
    return Part(U, S, V, "gram")


def _left_null_space(A: Tensor, V: Tensor, count: int, generator: torch.Generator) -> Tensor:  # A (m, n), V (n, k)
    """Orthonormal vectors (m, count) outside the range of A, V being its right vectors with sigma above zero."""
    within = orthonormal(A @ V)  # (m, k)
    X = random_block(A.T, count, generator)
    for _ in range(2):
        X = orthonormal(X - within @ (within.T @ X))
    return X

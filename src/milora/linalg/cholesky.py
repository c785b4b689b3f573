"""The bottom of a weight with more rows than columns, by a Cholesky factorisation of its Gram matrix.

    G = W^T W = R^T R,   T = (G - mu I)^-1:   two triangular solves

In float32 the Gram matrix squares the condition, which is harmless for a well-conditioned weight (`UNSAFE`); else G and
its factor are made in float64, and the factor is rounded to the working precision for the sweep: that perturbs the
singular values by eps ||W||, like rounding W itself, not by its square root. Where the edge is flat the space grows too
slowly; then G is factorised again, shifted to just below its smallest Ritz value, which spreads the wanted values
apart. The last step, V <- orth(G^-1 V), is in the precision of G.
"""

from __future__ import annotations

import torch
from torch import Tensor

from milora.linalg.krylov import KrylovSpace, NotConverged, converge, orthonormal, times
from milora.linalg.parts import Part, Unsafe, deflated_values, image, random_block

# eps ||W||_F^2 / sigma_min^2 above this makes the smallest left vectors of a Gram matrix of that precision noise.
UNSAFE = 1e-2
SHIFTS = 3
FIRST = 9  # the edge of a rectangular weight is flat: no space of fewer blocks holds it


def bottom(
    A: Tensor, r: int, b: int, tolerance: float, generator: torch.Generator, *, precision: torch.dtype
) -> Part:  # A (m, n), m >= n
    """The r minor triplets of a matrix with at least as many rows as columns.

    Args:
        A: float32 or float64, entries of order 1.
        r: 1 to n.
        b: block size.
        tolerance: relative excess of energy at which the space is taken.
        generator: of the random start.
        precision: of the Gram matrix and its factor.

    Raises:
        Unsafe: the condition is too high for that precision.
        NotConverged: the edge is too flat, shifted too.
    """
    G = gram(A.to(precision))
    lower = _factor(G, 0.0)
    # sigma_min^2 is at most the square of the factor's smallest diagonal entry.
    if lower is None or _unsafe(G, float(lower.diagonal().min()) ** 2):
        raise Unsafe("its condition is too high for a Gram matrix of this precision")
    start, shift, shifts = _solve(lower.to(A.dtype), random_block(A, b, generator)), 0.0, 0
    while True:
        rounded = lower.to(A.dtype)
        space = KrylovSpace(lambda Q, _, R=rounded: _solve(R, Q), rounded.T, start, True, shift)
        try:
            converge(space, r, tolerance, FIRST)
            return _finish(A, G, space, r, lower, generator)
        except NotConverged:
            if shifts == SHIFTS:
                raise
        lower, start, shift = _shifted(G, space)
        shifts += 1


def gram(A: Tensor) -> Tensor:  # (m, n) -> (n, n)
    """W^T W, its lower triangle only, by blocks of columns: half the work of the whole product."""
    n = A.shape[1]
    block = min(192, max(64, n // 6))
    G = A.new_zeros(n, n)
    for j in range(0, n, block):
        G[j:, j : j + block] = A[:, j:].T @ A[:, j : j + block]
    return G


def _factor(G: Tensor, shift: float) -> Tensor | None:  # (n, n)
    """The lower Cholesky factor of G - shift I, or None where it is not positive definite."""
    if shift:
        G = G.clone()
        G.diagonal().sub_(shift)
    lower, info = torch.linalg.cholesky_ex(G)
    return lower if int(info) == 0 else None


def _solve(lower: Tensor, X: Tensor) -> Tensor:  # (n, n), (n, b)
    """(L L^T)^-1 X."""
    half = torch.linalg.solve_triangular(lower, X, upper=False)
    return torch.linalg.solve_triangular(lower.T, half, upper=True)


def _shifted(G: Tensor, space: KrylovSpace) -> tuple[Tensor, Tensor, float]:
    """A factor of G - mu I, mu as near below the smallest eigenvalue as it comes; the block to go on from; mu."""
    ritz = space.ritz(space.b)
    M, theta, v = space.M, float(ritz.theta[0]), ritz.V[:, :1].to(space.M.dtype)
    Gv = times(M.T, times(M, v)) + space.shift * v
    # A residual of exactly zero says no more than rounding lets it, and times 4 it would stay zero.
    residual = max(float(torch.linalg.vector_norm(Gv - theta * v)), torch.finfo(M.dtype).eps * theta)
    distance = min(2 * residual, 0.5 * theta)
    while distance < theta:
        lower = _factor(G, theta - distance)
        if lower is not None:
            return lower, ritz.V.to(M.dtype), theta - distance
        distance *= 4
    raise NotConverged


def _unsafe(G: Tensor, smallest: float) -> bool:  # (n, n); the square of the smallest singular value
    """Whether rounding G moves its smallest eigenvalue by more than UNSAFE; trace G = ||W||_F^2."""
    return torch.finfo(G.dtype).eps * float(G.diagonal().sum()) > UNSAFE * smallest


def _finish(A: Tensor, G: Tensor, space: KrylovSpace, r: int, lower: Tensor, generator: torch.Generator) -> Part:
    """One more step of T in the factor's own precision, then the triplets of W on it in float64."""
    ritz = space.ritz(r)
    V = orthonormal(_solve(lower, ritz.V.to(lower.dtype)).to(torch.float64))
    Q, R = torch.linalg.qr(image(A, V))
    P, S, Qh = torch.linalg.svd(R)
    if _unsafe(G, float(S[-1]) ** 2):
        raise Unsafe("its condition is too high for a Gram matrix of this precision")
    U, V = Q @ P, V @ Qh.T
    estimate = abs(float(ritz.theta.sum()) / float(S.square().sum()) - 1)
    rounded = lower.to(A.dtype)
    probe = float(deflated_values(lambda X: _solve(rounded, X), A, V.to(A.dtype), generator, steps=2).min())
    name = f"cholesky-{str(lower.dtype).removeprefix('torch.')}"
    return Part(U, S, V, name, estimate, probe / float(S[0]))

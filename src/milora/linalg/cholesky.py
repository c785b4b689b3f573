"""The bottom of a weight with more rows than columns, by a Cholesky factorisation of its Gram matrix.

    G = W^T W = L L^T,   T = (G - mu I)^-1:   two triangular solves

In float32 the Gram matrix squares the condition, which is harmless for a well-conditioned weight (`UNSAFE`), and the
Ritz values of T itself are good enough (`lanczos.py`). Else G and its factor are made in float64, and the factor is
rounded to the working precision for the sweep: that perturbs the singular values by eps ||W||, like rounding W itself,
not by its square root; Ritz values are then taken of G (`krylov.py`). Where the edge is flat the space grows too
slowly; then G is factorised again, shifted to just below its smallest Ritz value, which spreads the wanted values
apart. The last step, V <- orth(T V), is in the precision of G.
"""

from __future__ import annotations

import torch
from torch import Tensor

from milora.linalg import triangular
from milora.linalg.krylov import MOST, KrylovSpace, NotConverged, converge, orthonormal
from milora.linalg.lanczos import LanczosSpace, settle
from milora.linalg.parts import Part, Unsafe, deflated_values, image, random_block
from milora.linalg.products import few, gram, times

# eps ||W||_F^2 / sigma_min^2 above this makes the smallest left vectors of a Gram matrix of that precision noise.
UNSAFE = 1e-2
SHIFTS = 3
# Blocks before the first look: the edge of a rectangular weight is flat, and no space of fewer holds it.
FIRST = 9  # for Ritz values of G
FIRST_OF_T = 13


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
    lower = _safe_factor(G)
    start, shift, shifts = triangular.solve(lower.to(A.dtype), random_block(A, b, generator)), 0.0, 0
    while True:
        space = _space(lower, start, shift)
        try:
            TV, energy, left = _last_step(space, r, tolerance, lower)
            break
        except NotConverged:
            if shifts == SHIFTS:
                raise
        lower, start, shift = _shifted(G, lower, space, shift)
        shifts += 1
    V = orthonormal(TV.to(torch.float64))
    # A Gram matrix of float32 was safe, so that products of float32 are.
    WV = image(A, V) if precision != A.dtype else few(A, V.to(A.dtype)).to(torch.float64)
    Q, R = torch.linalg.qr(WV)
    P, S, Qh = torch.linalg.svd(R)
    if _unsafe(G, float(S[-1]) ** 2):
        raise Unsafe("its condition is too high for a Gram matrix of this precision")
    U, V = Q @ P, V @ Qh.T
    estimate = max(left, abs(energy / float(S.square().sum()) - 1))
    rounded = lower.to(A.dtype)
    probe = float(deflated_values(lambda X: triangular.solve(rounded, X), A, V.to(A.dtype), generator, steps=2).min())
    return Part(U, S, V, f"cholesky-{str(precision).removeprefix('torch.')}", estimate, probe / float(S[0]))


def _space(lower: Tensor, start: Tensor, shift: float) -> KrylovSpace | LanczosSpace:  # (n, n), (n, b)
    """A space of T; a factor that had to be made in float64 is too ill-conditioned for Ritz values of T."""
    rounded, (n, b) = lower.to(start.dtype), start.shape
    if lower.dtype == start.dtype:
        return LanczosSpace(lambda Q: triangular.solve(rounded, Q), start, max(MOST * b, n // 4), True, shift)
    return KrylovSpace(lambda Q: triangular.solve(rounded, Q), rounded.tril().T, start, shift)


def _last_step(
    space: KrylovSpace | LanczosSpace, r: int, tolerance: float, lower: Tensor
) -> tuple[Tensor, float, float]:  # (n, n) -> (n, r)
    """T V of the wanted Ritz vectors, once they are final; their energy; what is predicted to be left of its error."""
    if isinstance(space, LanczosSpace):
        left = settle(space, r, tolerance, FIRST_OF_T)
        return space.applied(r), space.energy(r), left
    # This estimate is of the space, and many times what the last step leaves.
    converge(space, r, tolerance, FIRST)
    ritz = space.ritz(r)
    return triangular.solve(lower, ritz.V.to(lower.dtype)), float(ritz.theta.sum()), 0.0


def _safe_factor(G: Tensor) -> Tensor:  # (n, n)
    lower = _factor(G, 0.0)
    # sigma_min^2 is at most the square of the factor's smallest diagonal entry.
    if lower is None or _unsafe(G, float(lower.diagonal().min()) ** 2):
        raise Unsafe("its condition is too high for a Gram matrix of this precision")
    return lower


def _factor(G: Tensor, shift: float) -> Tensor | None:  # (n, n)
    """The lower Cholesky factor of G - shift I, or None where it is not positive definite."""
    if shift:
        G = G.clone()
        G.diagonal().sub_(shift)
    return triangular.cholesky(G)


def _shifted(
    G: Tensor, lower: Tensor, space: KrylovSpace | LanczosSpace, shift: float
) -> tuple[Tensor, Tensor, float]:  # (n, n), (n, n)
    """A factor of G - mu I, mu as near below the smallest eigenvalue as it comes; the block to go on from; mu."""
    ritz = space.ritz(space.b)
    M, theta, v = lower.tril().T, float(ritz.theta[0]), ritz.V[:, :1].to(lower.dtype)
    Gv = times(M.T, times(M, v)) + shift * v
    # A residual of exactly zero says no more than rounding lets it, and times 4 it would stay zero.
    residual = max(float(torch.linalg.vector_norm(Gv - theta * v)), torch.finfo(space.Qt.dtype).eps * theta)
    distance = min(2 * residual, 0.5 * theta)
    while distance < theta:
        shifted = _factor(G, theta - distance)
        if shifted is not None:
            return shifted, ritz.V.to(space.Qt.dtype), theta - distance
        distance *= 4
    raise NotConverged


def _unsafe(G: Tensor, smallest: float) -> bool:  # (n, n); the square of the smallest singular value
    """Whether rounding G moves its smallest eigenvalue by more than UNSAFE; trace G = ||W||_F^2."""
    return torch.finfo(G.dtype).eps * float(G.diagonal().sum()) > UNSAFE * smallest

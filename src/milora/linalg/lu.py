"""The bottom of a square weight, by an LU factorisation in its own precision.

    W = P L U,   T = (W^T W)^-1 = W^-1 W^-T:   four triangular solves, and no condition is squared

The minor vectors are what a Krylov space of T finds first (`krylov.py`). Two half steps end it:

    U <- orth(W^-T V),   V <- orth(W^-1 U)

Each divides what is left of the principal directions by their singular values once more, also the rounding noise of the
factorisation, so that U is accurate where W V / s would be noise (s near the resolution). A small SVD of U^T W V in
float64 then gives the triplets.
"""

from __future__ import annotations

import torch
from torch import Tensor

from milora.linalg.krylov import KrylovSpace, converge, orthonormal, times
from milora.linalg.parts import Part, Unsafe, deflated_values, image, random_block


def bottom(A: Tensor, r: int, b: int, tolerance: float, generator: torch.Generator) -> Part:  # A (n, n)
    """The r minor triplets of a square matrix.

    Args:
        A: float32 or float64, entries of order 1.
        r: 1 to n.
        b: block size.
        tolerance: relative excess of energy at which the space is taken.
        generator: of the random start.

    Raises:
        Unsafe: A is singular to its precision.
        NotConverged: the edge is too flat.
    """
    factor, pivots, _ = torch.linalg.lu_factor_ex(A)
    diagonal = factor.diagonal().abs()
    if float(diagonal.min()) <= 4 * torch.finfo(A.dtype).eps * float(diagonal.max()):
        raise Unsafe("a pivot is zero to the precision")

    def to_left(X: Tensor) -> Tensor:  # W^-T X
        return torch.linalg.lu_solve(factor, pivots, X, adjoint=True)

    def to_right(X: Tensor) -> Tensor:  # W^-1 X
        return torch.linalg.lu_solve(factor, pivots, X)

    def inverse(X: Tensor) -> Tensor:  # (W^T W)^-1 X
        return to_right(to_left(X))

    start = inverse(random_block(A, b, generator))
    if not bool(torch.isfinite(start).all()):
        raise Unsafe("the inverse overflows")
    space = KrylovSpace(lambda Q, _: inverse(Q), A, start, smallest=True)
    converge(space, r, tolerance)
    ritz = space.ritz(r)
    U = orthonormal(to_left(ritz.V.to(A.dtype)).to(torch.float64))
    V = to_right(U.to(A.dtype)).to(torch.float64)
    # One refinement of W V = U in float64 takes the factorisation's own error out of it.
    V += to_right((U - image(A, V)).to(A.dtype)).to(torch.float64)
    V = orthonormal(V)
    WV = image(A, V)
    P, S, Qh = torch.linalg.svd(U.T @ WV)
    U, V = U @ P, V @ Qh.T
    energies = [float(x.square().sum()) for x in (times(A.T, U.to(A.dtype)), WV)]
    estimate = _left([float(ritz.theta.sum()), *energies]) / energies[-1]
    probe = float(deflated_values(inverse, A, V.to(A.dtype), generator, steps=2).min())
    return Part(U, S, V, "lu", estimate, probe / float(S[0]))


def _left(energies: list[float]) -> float:
    """What two half steps leave of an excess of energy, which falls by half step as a geometric series does."""
    first, second = max(energies[0] - energies[1], 0.0), max(energies[1] - energies[2], 0.0)
    q = second / first if first > second else 1.0
    return max(second, min(second * q / (1 - q), first + second)) if q < 1 else first + second

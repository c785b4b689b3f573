"""The bottom of a square weight, by an LU factorisation in its own precision.

  P W^T = L U,   T = (W^T W)^-1 = W^-1 W^-T:   four triangular solves, and no condition is squared

The minor vectors are what a Krylov space of T finds first (`krylov.py`). Two half steps end it:

    U <- orth(W^-T V),   V <- orth(W^-1 U)

Each divides what is left of the principal directions by their singular values once more, also the rounding noise of the
factorisation, so that U is accurate where W V / s would be noise (s near the resolution). A small SVD of U^T W V in
float64 then gives the triplets.
"""

from __future__ import annotations

import torch
from torch import Tensor

from milora.linalg.krylov import KrylovSpace, converge, orthonormal
from milora.linalg.parts import Part, Unsafe, deflated_values, image, random_block
from milora.linalg.triangular import LU


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
    factors = LU(A)
    diagonal = factors.factor.diagonal().abs()
    if float(diagonal.min()) <= 4 * torch.finfo(A.dtype).eps * float(diagonal.max()):
        raise Unsafe("a pivot is zero to the precision")
    to_left, to_right = factors.solve_transposed, factors.solve

    def inverse(X: Tensor) -> Tensor:  # (W^T W)^-1 X
        return to_right(to_left(X))

    start = inverse(random_block(A, b, generator))
    if not bool(torch.isfinite(start).all()):
        raise Unsafe("the inverse overflows")
    space = KrylovSpace(inverse, A, start)
    left = converge(space, r, tolerance)
    U = orthonormal(to_left(space.ritz(r).V.to(A.dtype)).to(torch.float64))
    V = to_right(U.to(A.dtype)).to(torch.float64)
    # One refinement of W V = U in float64 takes the factorisation's own error out of it.
    V += to_right((U - image(A, V)).to(A.dtype)).to(torch.float64)
    lengths = torch.linalg.vector_norm(V, dim=0).clamp_min(torch.finfo(V.dtype).tiny)
    V, R = torch.linalg.qr(V / lengths)
    if not bool(torch.isfinite(R).all()):
        raise Unsafe("the inverse overflows")
    # W V R diag(lengths) = U
    P, S, Qh = torch.linalg.svd(torch.linalg.solve_triangular(R * lengths, torch.eye(r, dtype=R.dtype), upper=True))
    U, V = U @ P, V @ Qh.T
    probe = float(deflated_values(inverse, A, V.to(A.dtype), generator, steps=2).min())
    return Part(U, S, V, "lu", left, probe / float(S[0]))

"""The top of a weight, by a block Krylov space of W^T W from a seeded random start.

    T = W^T W,   M = W:   the space of the block Golub-Kahan process

Randomised subspace iteration (`torch.svd_lowrank`) multiplies as often and keeps only the last block; keeping all of
them leaves out a hundredth of the energy that it leaves out. Products with W are in its own precision: sigma is large
against their rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from milora.linalg.krylov import KrylovSpace, converge, times
from milora.linalg.parts import Part, deflated_values, random_block


def top(A: Tensor, r: int, b: int, tolerance: float, generator: torch.Generator) -> Part:  # A (m, n), m >= n
    """The r principal triplets.

    Args:
        A: float32 or float64, entries of order 1.
        r: 1 to n.
        b: block size.
        tolerance: relative deficit of energy at which the space is taken.
        generator: of the random start.

    Raises:
        NotConverged: the edge is too flat.
    """
    start = times(A.T, random_block(A.T, b, generator))
    space = KrylovSpace(lambda _, image: times(A.T, image()), A, start, smallest=False)
    estimate = converge(space, r, tolerance)
    ritz = space.ritz(r)
    V, R = torch.linalg.qr(ritz.V)
    WV = torch.linalg.solve_triangular(R, ritz.MV, upper=True, left=False)
    Q, R = torch.linalg.qr(WV)
    P, S, Qh = torch.linalg.svd(R)
    U, V = Q @ P, V @ Qh.T

    def operator(X: Tensor) -> Tensor:  # W^T W X
        return times(A.T, times(A, X))

    probe = float(deflated_values(operator, A, V.to(A.dtype), generator, steps=2).max())
    return Part(U, S, V, "krylov", estimate, probe / max(float(S[-1]), 1e-300))

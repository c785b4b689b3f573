"""The top of a weight, by a block Krylov space of W^T W from a seeded random start.

    T = W^T W:   the space of the block Golub-Kahan process

Randomised subspace iteration (`torch.svd_lowrank`) multiplies as often and keeps only the last block; keeping all of
them leaves out a hundredth of the energy that it leaves out. Half a step ends it, U <- orth(W T V), and the triplets of
U U^T W are given out.

The space may be built with products in bfloat16, which processors that have them do two or three times faster. Rounding
then moves a Ritz vector of (n, 1) in no direction by more than about 2^-9 / sqrt(n), which costs a large weight some
1e-5 of the energy; what is given out is made of whole products. Where sigma_1 is a thousand times sigma_r, the noise
of the one hides the other: such a space does not converge, or fails its checks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from milora.linalg.krylov import MOST, orthonormal
from milora.linalg.lanczos import LanczosSpace, settle
from milora.linalg.parts import Part, deflated_values, random_block
from milora.linalg.products import few, times

FIRST = 6  # blocks before the first look
PACE = 0.35  # see `settle`; the top of a weight is often flat
SHORTENED = 2**23  # entries from which the noise is small


def top(
    A: Tensor, r: int, b: int, tolerance: float, generator: torch.Generator, *, shortened: bool = False
) -> Part:  # A (m, n), m >= n
    """The r principal triplets.

    Args:
        A: float32 or float64, entries of order 1.
        r: 1 to n.
        b: block size.
        tolerance: relative deficit of energy at which the space is taken.
        generator: of the random start.
        shortened: build the space with products in bfloat16.

    Raises:
        NotConverged: the edge is too flat.
    """
    operator = _operator(A, torch.bfloat16 if shortened else A.dtype)
    start = operator(random_block(A, b, generator))
    space = LanczosSpace(operator, start, max(MOST * b, A.shape[1] // 2), smallest=False)
    left = settle(space, r, tolerance, FIRST, PACE)
    U = orthonormal(times(A, space.applied(r)).to(torch.float64))
    # W^T U, whose triplets are those of U U^T W, is one half step more. The smaller residual is this product's
    # rounding, of which `few` leaves less.
    Q, R = torch.linalg.qr(few(A.T, U.to(A.dtype)).to(torch.float64))
    P, S, Qh = torch.linalg.svd(R)
    V, U = Q @ P, U @ Qh.T
    probe = float(deflated_values(operator, A, V.to(A.dtype), generator, steps=2).max())
    return Part(U, S, V, "krylov-bfloat16" if shortened else "krylov", left, probe / max(float(S[-1]), 1e-300))


def shortens(A: Tensor) -> bool:  # (m, n)
    """Whether bfloat16 products are worth their rounding: the processor has them, and A is large."""
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", bool)
    return A.device.type == "cpu" and A.dtype == torch.float32 and A.numel() >= SHORTENED and bool(native())


def _operator(A: Tensor, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:  # (m, n)
    """W^T W X, with both orders of the entries of W, for each product takes one of them as it lies in memory."""
    rows = A.to(dtype)
    rows, columns = rows.contiguous(), rows.T.contiguous()
    return lambda X: times(columns, times(rows, X.to(dtype))).to(A.dtype)

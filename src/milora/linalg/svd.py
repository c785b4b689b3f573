"""Singular triplets of one weight, W = U S V^T, with signs fixed.

    W (m, n),  k = min(m, n):   U (m, k),  S (k,) falling,  V^T = Vh (k, n)

Singular vectors are unique only up to a common sign of u_i and v_i. Here the entry of u_i of largest magnitude is
positive (the first such entry on a tie), so that one weight gives one set of factors whatever routine computed it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from milora.errors import MiloraError
from milora.linalg.certificate import Certificate


class Triplets(Protocol):
    """Whatever can be asked for parts of a decomposition; `len` is k = min(m, n). Each part is an `SVD`."""

    def __len__(self) -> int: ...

    def top(self, r: int) -> SVD:
        """The r principal triplets."""
        ...

    def bottom(self, r: int) -> SVD:
        """The r minor triplets."""
        ...

    def middle(self, r: int) -> SVD:
        """The r central triplets, from index (k - r) // 2 on."""
        ...

    def take(self, indices: Tensor) -> SVD:  # indices (r,), rising
        """The triplets at `indices`, 0 being the largest singular value."""
        ...

    def full(self) -> SVD:
        """All triplets."""
        ...


@dataclass(frozen=True)
class SVD:
    """Singular triplets of a matrix, S falling: all of them, or a part.

    Attributes:
        U: left singular vectors, one a column.
        S: singular values, in falling order.
        Vh: right singular vectors, one a row.
        resolution: the absolute size below which a singular value is rounding noise of the computation.
        certificate: what was checked of it; a part of an SVD carries the certificate of the whole.
    """

    U: Tensor  # (m, k)
    S: Tensor  # (k,)
    Vh: Tensor  # (k, n)
    resolution: float = 0.0
    certificate: Certificate | None = None

    def __len__(self) -> int:
        return self.S.shape[0]

    def top(self, r: int) -> SVD:
        """The r principal triplets: U[:, :r], S[:r], Vh[:r]."""
        check_rank(r, len(self))
        return self.take(torch.arange(r, device="cpu"))

    def bottom(self, r: int) -> SVD:
        """The r minor triplets: U[:, -r:], S[-r:], Vh[-r:]."""
        check_rank(r, len(self))
        return self.take(torch.arange(len(self) - r, len(self), device="cpu"))

    def middle(self, r: int) -> SVD:
        """The r central triplets, from index (k - r) // 2 on."""
        check_rank(r, len(self))
        return self.take(middle_indices(r, len(self)))

    def take(self, indices: Tensor) -> SVD:  # indices (r,), rising
        """The triplets at `indices`, 0 being the largest singular value."""
        i = indices.to(self.S.device)
        return replace(self, U=self.U[:, i], S=self.S[i], Vh=self.Vh[i])

    def full(self) -> SVD:
        """All triplets there are."""
        return self


def check_matrix(W: Tensor) -> None:
    """Raise a MiloraError unless W is a matrix with at least one entry."""
    if W.ndim != 2 or 0 in W.shape:
        raise MiloraError(f"weight: got shape {tuple(W.shape)}, allowed a matrix with at least one entry")


def check_rank(r: int, k: int) -> None:
    """Raise a MiloraError unless 1 <= r <= k."""
    if not 1 <= r <= k:
        raise MiloraError(f"rank: got {r}, allowed 1 to {k} (the smaller side of the matrix)")


def middle_indices(r: int, k: int) -> Tensor:  # (r,)
    """The r central indices of 0..k-1, from (k - r) // 2 on."""
    start = (k - r) // 2
    return torch.arange(start, start + r, device="cpu")


def prepare(W: Tensor) -> tuple[Tensor, float]:  # (m, n) -> (m, n)
    """The weight as the algorithms take it, float16 and bfloat16 up-cast to float32, and its largest magnitude.

    Raises:
        MiloraError: W is not a matrix, is empty, or holds NaN or Inf.
    """
    check_matrix(W)
    W = W.detach()
    W = W if W.dtype == torch.float64 else W.to(torch.float32)
    # NaN and Inf are among the extremes, and one pass finds both of them.
    least, most = (float(x) for x in torch.aminmax(W))
    if not (math.isfinite(least) and math.isfinite(most)):
        raise MiloraError("weight: got NaN or Inf among its entries, allowed finite numbers")
    return W, max(-least, most)


def cast_values(S: Tensor, dtype: torch.dtype) -> Tensor:  # (k,) -> (k,)
    """Singular values in a weight's dtype.

    Raises:
        MiloraError: one is beyond the dtype's range, which sigma_1 can be where every entry is within.
    """
    cast = S.to(dtype)
    if not bool(torch.isfinite(cast).all()):
        name = str(dtype).removeprefix("torch.")
        raise MiloraError(f"weight: got singular values beyond {name}, allowed up to {torch.finfo(dtype).max:.3g}")
    return cast


def fix_signs(U: Tensor, Vh: Tensor) -> tuple[Tensor, Tensor]:  # U (m, k), Vh (k, n)
    """Flip u_i and v_i together so that the entry of u_i of largest magnitude is positive."""
    largest = U.abs().argmax(dim=0)  # (k,)
    signs = torch.where(U.gather(0, largest[None, :])[0] < 0, -1.0, 1.0).to(U.dtype)  # (k,)
    return U * signs, Vh * signs[:, None]

"""Which part of a decomposition is asked for: the name under which it is kept, and what else it can give."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from milora import linalg
from milora.errors import MiloraError
from milora.linalg import SVD
from milora.linalg.svd import check_rank
from milora.linalg.values import values

Kind = Literal["bottom", "top", "take", "full", "values"]


@dataclass(frozen=True)
class Part:
    """A part of W = U S V^T with k = min(m, n) triplets, S falling.

    Attributes:
        kind: the r smallest or largest triplets, those at `indices`, all, or all singular values without vectors.
        r: for "bottom" and "top".
        indices: for "take", rising, 0 being the largest singular value.
    """

    kind: Kind
    r: int | None = None
    indices: tuple[int, ...] | None = None

    @classmethod
    def bottom(cls, r: int) -> Part:
        """The r minor triplets."""
        return cls("bottom", r=r)

    @classmethod
    def top(cls, r: int) -> Part:
        """The r principal triplets."""
        return cls("top", r=r)

    @classmethod
    def take(cls, indices: Iterable[int] | Tensor) -> Part:
        """The triplets at `indices`."""
        return cls("take", indices=tuple(int(i) for i in indices))

    @classmethod
    def full(cls) -> Part:
        """All triplets."""
        return cls("full")

    @classmethod
    def values(cls) -> Part:
        """All singular values; U (m, 0) and Vh (0, n) are empty."""
        return cls("values")

    @property
    def name(self) -> str:
        """A name that is a part of a file's name: "bottom-64", "take-8-5f0c...", "full"."""
        if self.indices is not None:
            named = hashlib.sha256(",".join(map(str, self.indices)).encode()).hexdigest()[:16]
            return f"{self.kind}-{len(self.indices)}-{named}"
        return self.kind if self.r is None else f"{self.kind}-{self.r}"

    def check(self, k: int) -> None:
        """Raise a MiloraError unless a matrix with k singular values has this part."""
        if self.kind in ("bottom", "top"):
            check_rank(self.r or 0, k)
        if self.kind == "take":
            i = self.indices or ()
            if not i or i[0] < 0 or i[-1] >= k or any(a >= b for a, b in pairwise(i)):
                raise MiloraError(f"indices: got {list(i)[:8]}, allowed at least one, rising, within 0 to {k - 1}")

    def compute(self, W: Tensor, strict: bool = False) -> SVD:  # W (m, n)
        """This part of W, computed."""
        if self.kind == "bottom":
            return linalg.bottom(W, self.r or 0, strict=strict)
        if self.kind == "top":
            return linalg.top(W, self.r or 0, strict=strict)
        if self.kind == "take":
            return linalg.take(W, torch.tensor(self.indices))
        return linalg.full(W) if self.kind == "full" else values(W)

    def serves(self, other: Part) -> bool:
        """Whether the other part can be cut from this one.

        All singular values are computed to float64's accuracy, which those beside float32 vectors do not have.
        """
        if self == other or (self.kind == "full" and other.kind in ("bottom", "top", "take")):
            return True
        return self.kind == other.kind and self.kind in ("bottom", "top") and (self.r or 0) >= (other.r or 0)

    def of(self, held: Part, svd: SVD) -> SVD:
        """This part, cut from one that serves it."""
        if held == self:
            return svd
        if self.kind == "bottom":
            return svd.bottom(self.r or 0)
        if self.kind == "top":
            return svd.top(self.r or 0)
        return svd.take(torch.tensor(self.indices))

    def lengths(self, k: int) -> tuple[int, int]:
        """How many vectors and how many singular values it has, of k."""
        if self.kind == "values":
            return 0, k
        r = k if self.kind == "full" else len(self.indices) if self.indices is not None else self.r or 0
        return r, r

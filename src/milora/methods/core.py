"""What a core C can look like: C (q, q) between two frozen factors, as structured as its pattern.

    L0 C R0 x  =  L0 (C (R0 x))

A core knows how many numbers train, applies them to a vector, and can be written out densely, for a merge or an export.
A diagonal or banded core is never built densely to be applied.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from milora.errors import MiloraError


class Core(Protocol):
    """The shape of C (q, q) and how its numbers `c` (size,) stand in it."""

    @property
    def size(self) -> int:
        """How many numbers train."""
        ...

    def apply(self, c: Tensor, z: Tensor, indices: Tensor | None = None) -> Tensor:  # c (size,), z (..., q) -> (..., q)
        """C z."""
        ...

    def dense(self, c: Tensor, indices: Tensor | None = None) -> Tensor:  # c (size,) -> (q, q)
        """C itself."""
        ...


@dataclass(frozen=True)
class Dense:
    """All q x q numbers, row by row."""

    q: int

    @property
    def size(self) -> int:
        """q^2."""
        return self.q * self.q

    def apply(self, c: Tensor, z: Tensor, indices: Tensor | None = None) -> Tensor:
        """C z, one matrix product."""
        return F.linear(z, self.dense(c))

    def dense(self, c: Tensor, indices: Tensor | None = None) -> Tensor:
        """C (q, q), a view of c."""
        return c.view(self.q, self.q)


@dataclass(frozen=True)
class Diagonal:
    """C = diag(c)."""

    q: int

    @property
    def size(self) -> int:
        """q."""
        return self.q

    def apply(self, c: Tensor, z: Tensor, indices: Tensor | None = None) -> Tensor:
        """c * z."""
        return z * c

    def dense(self, c: Tensor, indices: Tensor | None = None) -> Tensor:
        """diag(c)."""
        return torch.diag(c)


def band_size(q: int, d: int) -> int:
    """Positions with |i - j| <= d in a (q, q) matrix: q (2d + 1) - d (d + 1)."""
    return q * (2 * d + 1) - d * (d + 1)


def band_positions(q: int, d: int) -> Tensor:  # (2, size)
    """Rows and columns of the band, row by row."""
    i = torch.arange(q)[:, None].expand(q, 2 * d + 1)
    j = i + torch.arange(-d, d + 1)
    inside = (j >= 0) & (j < q)
    return torch.stack([i[inside], j[inside]])


@dataclass(frozen=True)
class Banded:
    """|i - j| <= d, row by row.

    Applied in blocks of B rows: rows b B .. b B + B - 1 meet the columns from b B - d to b B + B - 1 + d and no other,
    so that C is q/B small matrices (B, B + 2d).
    """

    q: int
    d: int

    @property
    def size(self) -> int:
        """q (2d + 1) - d (d + 1)."""
        return band_size(self.q, self.d)

    def apply(self, c: Tensor, z: Tensor, indices: Tensor | None = None) -> Tensor:
        """C z, block of rows by block of rows."""
        B = min(self.q, max(32, 2 * self.d))
        count = -(-self.q // B)
        i, j = band_positions(self.q, self.d).to(c.device)
        blocks = c.new_zeros(count, B, B + 2 * self.d).index_put((i // B, i % B, j - (i // B) * B + self.d), c)
        padded = F.pad(z, (self.d, count * B - self.q + self.d))  # (..., count B + 2d)
        windows = padded.unfold(-1, B + 2 * self.d, B)  # (..., count, B + 2d)
        return torch.einsum("...bj,bij->...bi", windows, blocks.to(z.dtype)).flatten(-2)[..., : self.q]

    def dense(self, c: Tensor, indices: Tensor | None = None) -> Tensor:
        """C (q, q), zero outside the band."""
        i, j = band_positions(self.q, self.d).to(c.device)
        return c.new_zeros(self.q, self.q).index_put((i, j), c)


@dataclass(frozen=True)
class Scattered:
    """Numbers at `indices` (2, size), unique rows and columns that are kept beside them."""

    q: int
    size: int

    def check(self, indices: Tensor) -> None:
        """Refuse positions other than `size` pairs of whole numbers from 0 to q - 1, none twice.

        Raises:
            MiloraError: they are that.
        """
        if indices.shape != (2, self.size) or indices.is_floating_point():
            got = f"{tuple(indices.shape)} {indices.dtype}"
            raise MiloraError(f"indices: got {got}, allowed {(2, self.size)} whole numbers")
        if bool((indices < 0).any()) or bool((indices >= self.q).any()):
            raise MiloraError(f"indices: got {int(indices.min())} to {int(indices.max())}, allowed 0 to {self.q - 1}")
        twice = self.size - len((indices[0].to(torch.int64) * self.q + indices[1]).unique())
        if twice:
            raise MiloraError(f"indices: got {twice} positions twice, allowed each once")

    def apply(self, c: Tensor, z: Tensor, indices: Tensor | None = None) -> Tensor:
        """C z. C is filled in first: one (q, q) product is faster than gathering that many scattered numbers."""
        return F.linear(z, self.dense(c, indices))

    def dense(self, c: Tensor, indices: Tensor | None = None) -> Tensor:
        """C (q, q), zero elsewhere."""
        assert indices is not None
        i, j = indices.to(c.device, torch.int64)
        return c.new_zeros(self.q, self.q).index_put((i, j), c)

"""What the algorithms give back before it is certified, and what they share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from milora.linalg.krylov import orthonormal
from milora.linalg.products import times

PROBES = 8
PIECE = 2**18  # entries of a weight that are cast to float64 at a time


class Unsafe(Exception):
    """The matrix is outside what an algorithm can do in its precision; says why."""


@dataclass(frozen=True)
class Part:
    """Triplets as an algorithm found them, S falling, for a matrix with at least as many rows as columns.

    Attributes:
        U: left vectors, one a column.
        S: singular values.
        V: right vectors, one a column.
        algorithm: its name.
        estimate: what the algorithm believes to be left of the energy's error, relative.
        probe: the nearest singular value found outside the part, relative to the part's edge; None for direct ones.
    """

    U: Tensor  # (m, r) float64
    S: Tensor  # (r,) float64
    V: Tensor  # (n, r) float64
    algorithm: str
    estimate: float = 0.0
    probe: float | None = None


def random_block(A: Tensor, b: int, generator: torch.Generator) -> Tensor:  # (n, b)
    """Gaussian numbers in A's dtype and on its device; drawn on the CPU, so that every device has the same."""
    return torch.randn(b, A.shape[1], generator=generator, dtype=A.dtype, device="cpu").T.to(A.device)


def image(A: Tensor, X: Tensor) -> Tensor:  # (m, n), (n, b) float64 -> (m, b) float64
    """A X in float64, a piece of A at a time, so that what is cast stays in a cache and A is never held twice."""
    if A.dtype == torch.float64:
        return times(A, X)
    Xt, whole = X.T.contiguous(), A.is_contiguous()
    Yt = Xt.new_zeros(X.shape[1], A.shape[0])
    rows = A if whole else A.T  # as they lie in memory
    length = max(64, PIECE // rows.shape[1])
    buffer = Xt.new_empty(min(length, rows.shape[0]), rows.shape[1])
    for i in range(0, rows.shape[0], length):
        piece = buffer[: rows.shape[0] - i].copy_(rows[i : i + length])
        if whole:
            torch.mm(Xt, piece.T, out=Yt[:, i : i + length])
        else:
            Yt.addmm_(Xt[:, i : i + length], piece)
    return Yt.T


def deflated_values(
    operator: Callable[[Tensor], Tensor], A: Tensor, V: Tensor, generator: torch.Generator, steps: int
) -> Tensor:  # (PROBES,)
    """Singular values of A on a random block that `operator` was applied to `steps` times, outside V throughout."""
    X = random_block(A, min(PROBES, A.shape[1] - V.shape[1]), generator)
    for _ in range(steps):
        X = orthonormal(X - V @ (V.T @ X))
        X = operator(X)
    X = orthonormal(X - V @ (V.T @ X))
    return torch.linalg.svdvals(times(A, X))

"""What the algorithms give back before it is certified, and what they share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from milora.linalg.krylov import orthonormal, times

PROBES = 8


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
    """A X in float64, some rows of A at a time, so that what is cast stays in a cache and A is never held twice."""
    if A.dtype == torch.float64:
        return times(A, X)
    rows = max(256, 2**20 // A.shape[1])
    return torch.cat([times(A[i : i + rows].to(torch.float64), X) for i in range(0, A.shape[0], rows)])


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

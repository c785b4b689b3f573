"""Matrices of every class that weights fall into, and some that they should not: by name, as functions of a shape."""

from collections.abc import Callable

import torch
from torch import Tensor

Shape = tuple[int, int]


def gaussian(shape: Shape, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def with_spectrum(shape: Shape, S: Tensor, seed: int = 0) -> Tensor:
    """A float64 matrix with the singular values S (k,)."""
    m, n = shape
    U = torch.linalg.qr(gaussian((m, len(S)), seed)).Q
    V = torch.linalg.qr(gaussian((n, len(S)), seed + 1)).Q
    return U * S @ V.T


def _k(shape: Shape) -> int:
    return min(shape)


def _index(shape: Shape) -> Tensor:
    return torch.arange(1, _k(shape) + 1, dtype=torch.float64)


def _clusters(shape: Shape) -> Tensor:
    """Eight values, each k / 8 times over: every edge falls into a cluster or between two."""
    return torch.repeat_interleave(torch.arange(8, 0, -1, dtype=torch.float64), _k(shape) // 8)


def _duplicated_columns(shape: Shape) -> Tensor:
    W = gaussian(shape)
    k = _k(shape) // 8
    W[:, :k] = W[:, k : 2 * k]
    return W


def _outlier(shape: Shape) -> Tensor:
    W = gaussian(shape)
    W[:, 3] *= 1000
    return W


CLASSES: dict[str, Callable[[Shape], Tensor]] = {
    "gaussian": gaussian,
    "gaussian in bfloat16": lambda s: gaussian(s).bfloat16().double(),
    "heavy-tailed": lambda s: with_spectrum(s, _index(s) ** -1.0),
    "flat tail": lambda s: with_spectrum(s, _index(s) ** -0.4),
    "flat tail in bfloat16": lambda s: with_spectrum(s, _index(s) ** -0.4).bfloat16().double(),
    "linear tail": lambda s: with_spectrum(s, torch.linspace(1, 1e-3, _k(s), dtype=torch.float64)),
    "condition 1e5": lambda s: with_spectrum(s, torch.logspace(0, -5, _k(s), dtype=torch.float64)),
    "condition 1e9": lambda s: with_spectrum(s, torch.logspace(0, -9, _k(s), dtype=torch.float64)),
    "one tiny value": lambda s: with_spectrum(
        s, torch.cat([torch.linspace(1, 0.1, _k(s) - 1), torch.tensor([1e-7])]).double()
    ),
    "rank-deficient": lambda s: with_spectrum(s, torch.linspace(1, 0.1, _k(s) - 20, dtype=torch.float64)),
    "mostly zero": lambda s: with_spectrum(s, torch.linspace(1, 0.1, _k(s) // 4, dtype=torch.float64)),
    "duplicated columns": _duplicated_columns,
    "clusters": lambda s: with_spectrum(s, _clusters(s)),
    "orthogonal": lambda s: with_spectrum(s, torch.ones(_k(s), dtype=torch.float64)),
    "identity": lambda s: torch.eye(*s, dtype=torch.float64),
    "outlier column": _outlier,
    "zero rows": lambda s: torch.cat([gaussian((s[0] - 5, s[1])), torch.zeros(5, s[1], dtype=torch.float64)]),
    "times 1e20": lambda s: 1e20 * gaussian(s),
    "times 1e-20": lambda s: 1e-20 * gaussian(s),
    "zero": lambda s: torch.zeros(s, dtype=torch.float64),
}

"""The best approximation of an adapter's change in fewer ranks, from its factors; the dense change is never made.

The q largest triplets of P Q = U S V^T, computed from the factors in float64 (`milora.linalg.factored`), are the best
approximation of rank q (Eckart & Young 1936), and what is left out has the Frobenius norm (sum_{i > q} S_i^2)^1/2.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from milora.adapters.delta import Delta
from milora.linalg.factored import factored_svd


@dataclass(frozen=True)
class LayerError:
    """What a truncation left out of one layer.

    Attributes:
        module: the layer's name.
        rank: of the exact change's factors.
        norm: Frobenius norm of the exact change.
        error: Frobenius norm of what was left out.
    """

    module: str
    rank: int
    norm: float
    error: float

    @property
    def relative(self) -> float:
        """error / norm; 0 for a change that is zero."""
        return self.error / self.norm if self.norm else 0.0


def truncated(delta: Delta, q: int, module: str = "") -> tuple[Tensor, Tensor, LayerError]:
    """The best factors of rank q of a change.

    Args:
        delta: the change, (out, in).
        q: the rank wanted; a change of smaller rank gets its own.
        module: the layer's name, for the record.

    Returns:
        B (out, k) and A (k, in), k <= q, float32, with B A the approximation, the singular values split evenly
        between them; and what was left out.
    """
    wide = Delta(tuple((P.double(), Q.double()) for P, Q in delta.terms), delta.scale)
    U, S, Vh = factored_svd(wide.P, wide.Q)
    root = S[:q].sqrt()
    B = U[:, :q] * root  # (out, k)
    A = root[:, None] * Vh[:q]  # (k, in)
    norm, error = (float(torch.linalg.vector_norm(part)) for part in (S, S[q:]))
    return B.float(), A.float(), LayerError(module, delta.rank, norm, error)


def total(errors: Iterable[LayerError]) -> float:
    """The relative Frobenius error over all layers: (sum error^2 / sum norm^2)^1/2."""
    layers = list(errors)
    norm = math.fsum(layer.norm**2 for layer in layers)
    return math.sqrt(math.fsum(layer.error**2 for layer in layers) / norm) if norm else 0.0

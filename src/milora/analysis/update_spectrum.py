"""The singular values and the principal directions of a weight's change.

    dW = U S V^T,    effective rank = exp(-sum_i p_i log p_i),  p_i = S_i / sum_j S_j     (Roy and Vetterli 2007)

A change that is given by factors, dW = P Q, is decomposed from these (`milora.linalg.factored`). It has no more
directions than its rank: vectors that belong to a singular value of zero are arbitrary, and are not given.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from milora.adapters.delta import Delta
from milora.linalg import top
from milora.linalg.factored import factored_svd
from milora.linalg.values import singular_values

# Factors wider than this share of the smaller side cost more than the matrix that they make.
_WIDE = 0.25


@dataclass(frozen=True)
class Update:
    """The decomposition of one change.

    Attributes:
        U: the q principal left singular vectors, q = min(r, rank of dW).
        S: all singular values, falling, in float64; those of a change by factors that are not zero by its width.
        Vh: the q principal right singular vectors, one a row.
    """

    U: Tensor  # (m, q)
    S: Tensor  # (k,)
    Vh: Tensor  # (q, n)

    @property
    def directions(self) -> int:
        """q."""
        return self.U.shape[1]


def decompose(dW: Tensor | Delta, r: int, dtype: torch.dtype = torch.float32) -> Update:  # dW (m, n)
    """The r principal triplets of a change and all its singular values.

    Args:
        dW: a matrix, or its factors.
        r: how many directions.
        dtype: of the vectors.

    Raises:
        MiloraError: NaN or Inf in dW.
    """
    m, n = dW.shape
    r = min(r, m, n)
    if isinstance(dW, Delta) and dW.rank <= _WIDE * min(m, n):
        wide = Delta(tuple((P.double(), Q.double()) for P, Q in dW.terms), dW.scale)
        U, S, Vh = factored_svd(wide.P, wide.Q)
    else:
        dense = dW.dense() if isinstance(dW, Delta) else dW
        S, part = singular_values(dense), top(dense, r)
        U, Vh = part.U, part.Vh
    # What is smaller is zero to float32 arithmetic, as in `milora.analysis.spectrum`.
    rank = int((torch.finfo(torch.float32).eps * max(m, n) ** 0.5 * S[0] < S).sum())
    q = min(r, rank)
    return Update(U[:, :q].to(dtype), S, Vh[:q].to(dtype))


def effective_rank(S: Tensor) -> float:  # (k,)
    """exp of the entropy of S / sum(S); 0 where all are zero."""
    total = S.double().sum()
    if not total > 0:
        return 0.0
    p = S[S > 0].double() / total
    return float((-p * p.log()).sum().exp())

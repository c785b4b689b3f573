"""SVF: one factor for each singular value (Sun et al., Transformer^2, arXiv 2501.06252).

    W' = U diag(S * z) V^T,   z (k,) trained, 1 at the start
       = W + U diag(z - 1) (S V^T)

L0 = U, R0 = S V^T, and C = diag(z - 1) trains, from zero. Trainable numbers: k = min(out, in).

The authors' code (SakanaAI/self-adaptive-llms, 03a41ae) trains x, N(0.1, 0.01^2) at the start, and keeps the nuclear
norm:

    z = sigmoid(x) * sum(S) / sum(S sigmoid(x))

so that only the proportions of z are learned. `as_published` does that; it starts about 0.5 % off the base. The name
was used before for the same idea in segmentation (Sun et al., NeurIPS 2022, arXiv 2206.06122).
"""

import torch
from torch import Tensor

from milora.linalg import Triplets
from milora.methods.core import Core, Diagonal
from milora.methods.factors import Choice, Factors, Method

MEAN, SIGMA = 0.1, 0.01  # of x at the start


def factors(svd: Triplets, choice: Choice) -> Factors:
    """L0 = U  (out, q),  R0 = S V^T  (q, in); all k triplets, or the `svd_rank` largest."""
    part = svd.full() if choice.svd_rank is None else svd.top(choice.svd_rank)
    C = MEAN + SIGMA * torch.randn(len(part), generator=choice.generator) if choice.as_published else None
    return Factors(part.U, part.S[:, None] * part.Vh, C=C)


def width(k: int, choice: Choice) -> int:
    """k, or `svd_rank`."""
    return k if choice.svd_rank is None else choice.svd_rank


def core(q: int, choice: Choice) -> Core:
    """C = diag(z - 1)."""
    return Diagonal(q)


def values(C: Tensor, R0: Tensor, choice: Choice) -> Tensor:  # (q,), (q, in) -> (q,)
    """z - 1, from z - 1 itself or from the authors' x."""
    if not choice.as_published:
        return C
    sigma = torch.linalg.vector_norm(R0, dim=1)
    z = torch.sigmoid(C)
    return z * (sigma.sum() / (sigma * z).sum()) - 1


METHOD = Method(
    name="svf",
    title="SVF",
    equation="W' = U diag(S z) V^T = W + U diag(z - 1) S V^T,  z = 1 at the start",
    paper="Sun et al., Transformer^2, arXiv 2501.06252",
    trains=frozenset({"C"}),
    factors=factors,
    ranked=False,
    width=width,
    core=core,
    values=values,
    own=frozenset({"svd_rank", "as_published"}),
)

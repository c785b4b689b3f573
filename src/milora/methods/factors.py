"""The one equation, and what a method declares of it.

    W' = W + s (L R - L0 R0)          W (out, in),  L (out, r),  R (r, in)

L0, R0 are the factors at the start, frozen; L, R the factors now; s the scale. At the start the bracket is zero, so the
adapted model is the base model. What trains is the change, L = L0 + dL and R = R0 + dR with dL = dR = 0 at the start:

    L R - L0 R0  =  L dR + dL R0  =  [L0 + dL, dL] [dR; R0]

which is zero to the last bit in every dtype, where a difference of two products would be zero only up to rounding.
The gradients are those of L and R themselves. Where R0 = 0 (MiCA) the second term is not there at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from milora.linalg import SVD, Triplets


@dataclass(frozen=True)
class Factors:
    """The factors of one weight at the start.

    Attributes:
        L0: (out, r).
        R0: (r, in), or None where it is zero.
        dead: how many of the chosen singular values are below the resolution of the decomposition and were
            replaced by trainable directions (see `split_sqrt`).
    """

    L0: Tensor  # (out, r)
    R0: Tensor | None  # (r, in)
    dead: int = 0


@dataclass(frozen=True)
class Choice:
    """The settings a method may look at.

    Attributes:
        r: rank, 1 to min(out, in).
        scale: s of the equation.
        components: for `random_components`: "random" or "middle".
        generator: the source of randomness, seeded by the caller per layer.
    """

    r: int
    scale: float
    components: str = "random"
    generator: torch.Generator | None = None


@dataclass(frozen=True)
class Method:
    """One method of the family.

    Attributes:
        name: the name in configurations, e.g. "milora".
        title: the name people read.
        equation: the paper's equation in one line.
        paper: where it stands.
        trains: which of "L" and "R" train.
        factors: the pure function (decomposition, choice) -> factors at the start.
    """

    name: str
    title: str
    equation: str
    paper: str
    trains: frozenset[str]
    factors: Callable[[Triplets, Choice], Factors]

    def count(self, out: int, in_: int, r: int) -> int:
        """Trainable numbers of one (out, in) weight at rank r."""
        return r * (("L" in self.trains) * out + ("R" in self.trains) * in_)


def split_sqrt(part: SVD, scale: float) -> Factors:
    """The square-root split of the papers: L0 = U (S/s)^1/2, R0 = (S/s)^1/2 V^T, so that s L0 R0 = U S V^T.

    A triplet with s_i = 0 would be dead: both its factors are zero, and so are both gradients (of L it is G R^T, of R
    it is L^T G). Such a triplet keeps its left vector, L0_i = u_i and R0_i = 0, which is MiCA's split: L0_i R0_i is
    still s_i u_i v_i^T = 0, and R_i has the gradient s u_i^T G.
    """
    root = (part.S / scale).clamp_min(0).sqrt()  # (r,)
    dead = part.resolution >= part.S  # (r,)
    L0 = part.U * torch.where(dead, torch.ones_like(root), root)  # (out, r)
    R0 = torch.where(dead, torch.zeros_like(root), root)[:, None] * part.Vh  # (r, in)
    return Factors(L0, R0, int(dead.sum()))

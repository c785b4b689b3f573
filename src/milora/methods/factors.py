"""The one equation, and what a method declares of it.

    W' = W + s (L C R - L0 C0 R0)          W (out, in),  L (out, q),  C (q, q),  R (q, in)

L0, C0, R0 are the factors at the start, frozen; L, C, R the factors now; s the scale. At the start the bracket is zero,
so the adapted model is the base model. What trains is the change (`bracket.py`). Where L and R train there is no C:

    L R - L0 R0  =  L dR + dL R0,          L = L0 + dL,  R = R0 + dR

and where C trains L and R do not: L0 (C - C0) R0 = L0 dC R0. Where R0 = 0 (MiCA) only L0 dR is left.

A method is a choice of triplets (`Choice.components`) and a split: both outer factors train, the right one, or the
core.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from milora.errors import MiloraError
from milora.linalg import SVD, Triplets
from milora.methods.core import Core

Components = str | tuple[int, ...]
NAMED = ("top", "bottom", "middle", "random")


@dataclass(frozen=True)
class Factors:
    """The factors of one weight at the start.

    Attributes:
        L0: (out, q).
        R0: (q, in), or None where it is zero.
        dead: how many of the chosen singular values are below the resolution of the decomposition and were
            replaced by trainable directions (see `split_sqrt`).
        C: the core's numbers at the start (`Method.core(...).size`,), or None where they are zero.
        indices: (2, size) where the core's numbers stand, if its pattern was drawn or looked for.
    """

    L0: Tensor  # (out, q)
    R0: Tensor | None  # (q, in)
    dead: int = 0
    C: Tensor | None = None
    indices: Tensor | None = None


@dataclass(frozen=True)
class Choice:
    """The settings a method may look at.

    Attributes:
        r: rank, 1 to min(out, in); methods of all triplets do not look at it.
        scale: s of the equation.
        components: which triplets: "top", "bottom", "middle", "random", or r rising indices, 0 being the largest
            singular value. None is the method's own.
        generator: the source of randomness, seeded by the caller per layer.
        pattern: for `svft`: "plain", "banded", "random", "top_k".
        d: for `svft`: off-diagonals on each side; "random" and "top_k" take as many positions as that band has.
        entries: for `svft`: how many positions "random" and "top_k" take, instead of `d`.
        svd_rank: for `svf` and `svft`: only that many triplets; None is all.
        as_published: for `lora_xs`, `svf`, `svft`: what the authors' code does, which does not start at the base.
    """

    r: int
    scale: float
    components: Components | None = None
    generator: torch.Generator | None = None
    pattern: str = "plain"
    d: int = 0
    entries: int | None = None
    svd_rank: int | None = None
    as_published: bool = False


def _no_core(q: int, choice: Choice) -> Core | None:
    return None


def _r(k: int, choice: Choice) -> int:
    return choice.r


def _as_they_are(C: Tensor, R0: Tensor, choice: Choice) -> Tensor:
    return C


@dataclass(frozen=True)
class Method:
    """One method of the family.

    Attributes:
        name: the name in configurations, e.g. "milora".
        title: the name people read.
        equation: the paper's equation in one line.
        paper: where it stands.
        trains: which of "L", "C" and "R" train.
        factors: the pure function (decomposition, choice) -> factors at the start.
        components: what `Choice.components` may be besides None: names, and "indices".
        ranked: whether the method takes r triplets and the scale alpha/r; else all, and s = 1.
        width: q of the equation, from k = min(out, in) and the choice.
        core: the core's pattern, from q and the choice; None where no core trains.
        numbers: how many numbers of the core train, where that is not the core's size.
        values: c, the numbers that stand in the core, from those that train, R0 and the choice.
        own: the fields of a choice that this method looks at beyond r and the scale.
    """

    name: str
    title: str
    equation: str
    paper: str
    trains: frozenset[str]
    factors: Callable[[Triplets, Choice], Factors]
    components: tuple[str, ...] = ()
    ranked: bool = True
    width: Callable[[int, Choice], int] = _r
    core: Callable[[int, Choice], Core | None] = _no_core
    numbers: Callable[[int, Choice], int] | None = None
    values: Callable[[Tensor, Tensor, Choice], Tensor] = _as_they_are
    own: frozenset[str] = field(default_factory=frozenset[str])

    def core_numbers(self, q: int, choice: Choice) -> int:
        """Trained numbers of the core; 0 where there is none."""
        core = self.core(q, choice)
        if core is None:
            return 0
        return core.size if self.numbers is None else self.numbers(q, choice)

    def count(self, out: int, in_: int, choice: Choice) -> int:
        """Trainable numbers of one (out, in) weight.

        Examples:
            >>> from milora.methods import METHODS
            >>> METHODS["milora"].count(11008, 4096, Choice(r=16, scale=1.0))
            241664
            >>> METHODS["svf"].count(11008, 4096, Choice(r=16, scale=1.0))
            4096
        """
        q = self.width(min(out, in_), choice)
        return q * (("L" in self.trains) * out + ("R" in self.trains) * in_) + self.core_numbers(q, choice)


def chosen(svd: Triplets, choice: Choice, default: str) -> SVD:
    """The r triplets that a choice names.

    Raises:
        MiloraError: more or fewer indices than r, or one that the weight does not have.
    """
    components = default if choice.components is None else choice.components
    if components == "top":
        return svd.top(choice.r)
    if components == "bottom":
        return svd.bottom(choice.r)
    if components == "middle":
        return svd.middle(choice.r)
    if components == "random":
        drawn = torch.randperm(len(svd), generator=choice.generator, device="cpu")
        return svd.take(drawn[: choice.r].sort().values)
    if isinstance(components, str):
        raise MiloraError(f"components: got {components!r}, allowed {', '.join(NAMED)}, or indices")
    if len(components) != choice.r:
        raise MiloraError(f"components: got {len(components)} indices, allowed r = {choice.r}")
    return svd.take(torch.tensor(components, device="cpu"))


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

"""Weights that several modules share, as a language model's head shares its embedding's.

An adapter changes what the targeted module computes. A merged weight would change the others as well.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from milora.errors import MiloraError

_INSIDE = "base_model.model."


def sharers(model: nn.Module) -> list[list[str]]:
    """The modules that hold one and the same weight, group by group, by their names without an adapter."""
    owners: dict[int, list[str]] = {}
    for inside, parent in model.named_modules():
        for leaf, child in parent._modules.items():
            weight = None if child is None else child._parameters.get("weight")
            if weight is not None:
                name = f"{inside}.{leaf}" if inside else leaf
                owners.setdefault(id(weight), []).append(name.removesuffix(".base_layer"))
    return [names for names in owners.values() if len(names) > 1]


def warn_of_tied_weights(model: nn.Module, targets: Iterable[str]) -> None:
    """Say what adapting one of several modules of one weight does.

    Raises:
        MiloraError: a target is one module under several names, of which only one would be adapted.
    """
    wanted = set(targets)
    for names in sharers(model):
        mine = [n for n in names if n in wanted]
        others = [n for n in names if n not in wanted]
        if not mine:
            continue
        for other in others:
            if model.get_submodule(mine[0]) is model.get_submodule(other):
                raise MiloraError(f"target_modules: {mine[0]} and {other} are one module, allowed modules of one name")
        what = (
            f"only {' and '.join(mine)} is adapted, {' and '.join(others)} keeps the base weight"
            if others
            else f"{' and '.join(mine)} are adapted each on its own"
        )
        warnings.warn(
            f"{mine[0]} shares its weight with {' and '.join(n for n in names if n != mine[0])}: {what};"
            " the adapter can be saved, loaded and exported, but not merged",
            stacklevel=2,
        )


def check_not_tied(model: nn.Module) -> None:
    """A weight that two modules share cannot take an adapter of one of them.

    Raises:
        MiloraError: an adapted weight is tied to another.
    """
    adapted = {n for n, m in model.named_modules() if isinstance(m, BaseTunerLayer)}
    for names in sharers(model):
        mine = [n for n in names if n in adapted]
        if mine:
            other = next(n for n in names if n != mine[0])
            raise MiloraError(
                f"merge: {mine[0].removeprefix(_INSIDE)} shares its weight with {other.removeprefix(_INSIDE)};"
                " save the base with tie_word_embeddings=False first, or export the adapter"
            )

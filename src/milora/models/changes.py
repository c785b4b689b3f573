"""Weights and their changes, one module at a time: W (out, in) and dW = W' - W.

W is the original weight, as it is in the base checkpoint. Nothing of a module is kept once the next one is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from milora.errors import MiloraError
from milora.models.targets import ALL_LINEAR
from milora.models.weights import LinearWeight, linear_weights


@dataclass(frozen=True)
class Changes:
    """What iterating gives: (module, W, dW) for each module. They may be a model's own memory: not to be written to.

    Attributes:
        modules: their names, in order.
        read: W (out, in) and dW of a module, dW a matrix in float32 (or more) or a `milora.adapters.delta.Delta`.
        r: the rank that the changes were trained with, where they have one.
        finish: called after the last module; raises where what was read did not belong together.
        skipped: what changed too and is no linear layer's matrix: a name, and what it is.
    """

    modules: list[str]
    read: Callable[[str], tuple[Tensor, Any]]
    r: int | None = None
    finish: Callable[[], None] = lambda: None
    skipped: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.modules)

    def __iter__(self) -> Iterator[tuple[str, Tensor, Any]]:
        for module in self.modules:
            yield (module, *self.read(module))
        self.finish()


def checkpoint_changes(
    base: str | Path,
    tuned: str | Path,
    targets: str | Sequence[str] = ALL_LINEAR,
    *,
    gguf_file: str | None = None,
    trust_remote_code: bool = False,
) -> Changes:
    """The changes of the linear weights between two whole checkpoints, each tensor read in its turn.

    Args:
        base: a folder of safetensors, a hub name, or a .gguf file.
        tuned: the same after training.
        targets: which weights; see `milora.models.weights.linear_weights`.
        gguf_file: the GGUF file inside `base`.
        trust_remote_code: run the model's own code to learn its architecture.

    Raises:
        MiloraError: see `linear_weights`; the two have other modules, or a module of another shape.
    """
    before = linear_weights(base, targets, gguf_file=gguf_file, trust_remote_code=trust_remote_code).weights
    after = {w.name: w for w in linear_weights(tuned, targets, trust_remote_code=trust_remote_code).weights}
    both: dict[str, tuple[LinearWeight, LinearWeight]] = {}
    for weight in before:
        other = after.pop(weight.name, None)
        if other is None:
            raise MiloraError(f"tuned: {tuned} has no linear weight {weight.name}, which {base} has")
        if other.shape != weight.shape:
            raise MiloraError(f"tuned: {weight.name} is {other.shape} in {tuned}, {weight.shape} in {base}")
        both[weight.name] = (weight, other)
    if after:
        raise MiloraError(f"tuned: {tuned} has {next(iter(after))}, which {base} has not")

    def read(module: str) -> tuple[Tensor, Tensor]:  # (out, in), (out, in)
        first, second = both[module]
        W = at_least_float32(first.load())
        return W, at_least_float32(second.load()).sub(W)

    return Changes(list(both), read)


def at_least_float32(W: Tensor) -> Tensor:  # (out, in)
    """The same numbers in float32, or in float64 where they are."""
    return W.detach().to(torch.promote_types(W.dtype, torch.float32))

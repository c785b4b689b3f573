"""`learning_rate: {match: METHOD, at: RATE}`: the rate of first steps as long as another method's are at its own.

    lr ||dW / lr||_own  =  at ||dW / lr||_other             (`milora.methods.first_steps`)

with the norm over all adapted linear weights together: of this adapter from its factors at the start, of the other
method with its own default alpha and this recipe's ranks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from accelerate.utils import broadcast_object_list
from rich.console import Console
from trl.trainer.sft_config import SFTConfig

from milora.adapters.build import FULL
from milora.adapters.first_steps import adapted_layers, adapter_steps, layer_steps
from milora.errors import MiloraError
from milora.models.spread import values_elsewhere
from milora.models.targets import select
from milora.models.weights import linear_modules, output_head
from milora.recipes.keys import MatchedRate
from milora.recipes.schema import Recipe


def match_rate(
    recipe: Recipe, model: Any, arguments: SFTConfig, before: Mapping[str, Any], console: Console
) -> dict[str, Any]:
    """Put the rate that `learning_rate` comes to into the trainer's arguments.

    Args:
        recipe: the resolved recipe; where its rate is a number nothing is done.
        model: the model as it will be trained, before the first step.
        arguments: the trainer's.
        before: the provenance of the run as it was started, where it goes on: its rate stays, to the last bit.
        console: told the rate.

    Returns:
        What goes into provenance.json, `learning_rate`: "resolved", the rate; "asked"; "weights", how many are
        compared; "per_rate", ||dW||_F / lr of the first steps of both; "predicted", ||dW||_F of one step at that rate.

    Raises:
        MiloraError: a method whose first steps are not predicted, no adapted linear layer.
    """
    asked = recipe.learning_rate
    if not isinstance(asked, MatchedRate):
        return {}
    found = before.get("learning_rate")
    if not found or found.get("asked") != asked.model_dump():
        # Where one process alone has the weights' values, the others take its word.
        told: list[Any] = [None if values_elsewhere() else _resolve(recipe, model, asked)]
        broadcast_object_list(told, from_process=0)
        found = told[0]
    arguments.learning_rate = found["resolved"]
    rate = f"learning_rate: {found['resolved']:.4g}"
    console.print(f"{rate}, for first steps as long as those of {asked.match} at {asked.at:.4g}", highlight=False)
    return {"learning_rate": found}


def _resolve(recipe: Recipe, model: Any, asked: MatchedRate) -> dict[str, Any]:
    settings = {"method": asked.match, "lora_r": recipe.lora_r, "rank_pattern": recipe.rank_pattern}
    layers = _layers(recipe, model)
    other = layer_steps(layers, settings)
    own = adapter_steps(model) if recipe.method != FULL else layer_steps(layers, {"method": FULL})
    lengths = [math.sqrt(math.fsum(steps[name] ** 2 for name in own)) for steps in (own, other)]
    if not all(lengths):
        raise MiloraError(f"learning_rate: got match {asked.match!r} with first steps of length 0, allowed a number")
    return {
        "resolved": asked.at * lengths[1] / lengths[0],
        "asked": asked.model_dump(),
        "weights": len(own),
        "per_rate": {"own": lengths[0], "other": lengths[1]},
        "predicted": asked.at * lengths[1],
    }


def _layers(recipe: Recipe, model: Any) -> dict[str, Any]:
    """The adapted linear layers; where all weights train, those that `target_modules` names."""
    if recipe.method != FULL:
        return adapted_layers(model)
    modules = linear_modules(model)
    return {name: modules[name] for name in select(recipe.target_modules, list(modules), output_head(model))}

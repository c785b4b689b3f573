"""How far the first steps of a run move the weights beside LoRA's, from the factors at the start."""

from __future__ import annotations

from typing import Any

from milora.adapters.first_steps import adapted_layers, layer_steps
from milora.analysis.prediction import ratios
from milora.comparison.grid import Grid
from milora.comparison.load import shared_keys
from milora.comparison.plan import Job
from milora.errors import MiloraError
from milora.methods.first_steps import UNPREDICTED
from milora.recipes import load_recipe


def first_steps(model: Any, job: Job, grid: Grid) -> dict[str, Any] | None:
    """||dW|| of the first steps over that of LoRA's, both at one rate: {"by_type": {type: ratio}, "all": ratio}.

    LoRA is the grid's own arm where it has one, else LoRA with its default alpha.

    Args:
        model: the run's adapted model; its base weights are decomposed, or read from the store.
        job: the run.
        grid: the grid.

    Returns:
        None for a method whose first steps are not predicted.
    """
    layers: dict[str, Any] = {**adapted_layers(model)}
    if job.recipe.method in UNPREDICTED or not layers:
        return None
    arm = next((arm for arm in grid.arms if arm.method == "lora"), None)
    keys = {**shared_keys(grid), **job.cell.variant.keys, **(arm.keys if arm else {})}
    plain = {"method": "lora", "lora_r": job.recipe.lora_r, "output_dir": "-", "learning_rate": 1.0}
    lora = load_recipe(None, keys | plain)
    try:
        return ratios(layer_steps(layers, job.recipe.model_dump()), layer_steps(layers, lora.model_dump()))
    except MiloraError:
        return None  # `as_published`, whose start is not the base

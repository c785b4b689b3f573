"""Which runs a grid stands for: each a recipe of its own, in a folder named by what tells it apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from milora.comparison.grid import FOLLOWING, Arm, Grid, Variant
from milora.comparison.load import check_recipes, shared_keys
from milora.errors import MiloraError
from milora.recipes.keys import MatchedRate
from milora.recipes.schema import Recipe

RUNS, SELECTION = "runs", "selection"


Rate = float | MatchedRate


def rate_name(rate: Rate) -> str:
    """A rate in a folder's name and as a key: 0.0003, or match_lora_0.0003."""
    return f"match_{rate.match}_{rate.at:g}" if isinstance(rate, MatchedRate) else f"{rate:g}"


@dataclass(frozen=True)
class Cell:
    """One arm at one rank on one variant: what has one learning rate in the end.

    Attributes:
        rates: the learning rates it may have.
    """

    arm: Arm
    variant: Variant
    r: int | None
    rates: tuple[Rate, ...]

    @property
    def key(self) -> str:
        """Its name: the label, the variant where there are several, the rank where there is one."""
        variant = "" if self.variant.label == "base" else f"@{self.variant.label}"
        return f"{self.arm.label}{variant}" + ("" if self.r is None else f"-r{self.r}")


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        place: its folder below the comparison's.
        recipe: the resolved recipe.
        measured: whether it is measured in full, or its validation loss alone.
    """

    place: str
    cell: Cell
    learning_rate: Rate
    seed: int
    recipe: Recipe
    measured: bool

    @property
    def name(self) -> str:
        """The name of the folder."""
        return Path(self.place).name


def cells(grid: Grid) -> list[Cell]:
    """Every arm at every rank on every variant, variants together so that a base is read once."""
    shared = shared_keys(grid)
    found = []
    for variant in grid.forms():
        for arm in grid.arms:
            keys = {**shared, **variant.keys, **arm.keys}
            ranks = arm.lora_r or [int(keys.get("lora_r", Recipe.model_fields["lora_r"].default))]
            rates = tuple(arm.learning_rate or [_default_rate(keys)])
            found += [Cell(arm, variant, r, rates) for r in (ranks if _ranked(arm.method) else [None])]
    return found


def selection_jobs(grid: Grid, output: Path, models: Mapping[str, str]) -> list[Job]:
    """The runs from which learning rates are chosen: those of cells that have several.

    Args:
        grid: the grid.
        output: the comparison folder.
        models: variant to model folder, where the variant has one of its own.

    Raises:
        MiloraError: several rates, and nothing or only test rows to choose by.
    """
    seeds = grid.selection.seeds or grid.seeds[:1]
    short = grid.selection.max_steps is not None
    several = [cell for cell in cells(grid) if len(cell.rates) > 1]
    wanted = [(cell, rate, seed) for cell in several for rate in cell.rates for seed in seeds]
    jobs = _jobs(grid, output, models, wanted, SELECTION if short else RUNS, measured=False)
    for job in jobs:
        _check_validation(grid, job)
    return jobs


def _check_validation(grid: Grid, job: Job) -> None:
    """A rate is chosen by the loss on validation rows, which are not the test's."""
    recipe, got = job.recipe, f"arms.{job.cell.arm.label}.learning_rate: got {len(job.cell.rates)} rates"
    if not grid.measure.validation or not (recipe.val_set_size or recipe.eval_dataset):
        allowed = "allowed one, or validation rows to choose by (val_set_size or eval_dataset, measure.validation)"
        raise MiloraError(f"{got} and no validation, {allowed}")
    if recipe.eval_dataset and recipe.eval_split.partition("[")[0] == "test":
        allowed = "allowed one, or validation rows that are not the test's"
        raise MiloraError(f"{got} with eval_split {recipe.eval_split!r}, {allowed}")


def measured_jobs(
    grid: Grid, output: Path, models: Mapping[str, str], chosen: Mapping[str, str | None], all_rates: bool = False
) -> list[Job]:
    """The runs that are measured: each cell at its chosen rate with every seed; with `all_rates` at the others too.

    Args:
        grid, output, models: as for :func:`selection_jobs`.
        chosen: cell to the name of its rate, for cells with several; a cell whose rates all failed has none.
        all_rates: measure the rates that were not chosen as well.
    """
    wanted = []
    for cell in cells(grid):
        rate = rate_name(cell.rates[0]) if len(cell.rates) == 1 else chosen.get(cell.key)
        rates = [r for r in cell.rates if all_rates or rate_name(r) == rate]
        # The chosen rate goes first: what is asked for is there when the rest is stopped.
        wanted += [(cell, r, seed) for r in sorted(rates, key=lambda r: rate_name(r) != rate) for seed in grid.seeds]
    return _jobs(grid, output, models, wanted, RUNS, measured=True)


def run_name(cell: Cell, rate: Rate, seed: int) -> str:
    """The name of a run's folder."""
    return f"{cell.key}-lr{rate_name(rate)}-s{seed}"


def _jobs(
    grid: Grid,
    output: Path,
    models: Mapping[str, str],
    wanted: list[tuple[Cell, Rate, int]],
    folder: str,
    *,
    measured: bool,
) -> list[Job]:
    shared, keys, where = shared_keys(grid), {}, {}
    for cell, rate, seed in wanted:
        name = run_name(cell, rate, seed)
        where[name] = (cell, rate, seed)
        keys[name] = {
            **shared,
            **cell.variant.keys,
            **cell.arm.keys,
            **_measured_steps(grid),
            "method": cell.arm.method,
            "learning_rate": rate.model_dump() if isinstance(rate, MatchedRate) else rate,
            "seed": seed,
            "output_dir": str(output / folder / name),
            "name": name,
        }
        if cell.variant.label in models:
            keys[name]["model_name_or_path"] = models[cell.variant.label]
        if cell.r is not None:
            keys[name]["lora_r"] = cell.r
        if folder == SELECTION:
            keys[name] |= {**dict.fromkeys(FOLLOWING), "save_strategy": "no", "eval_strategy": "no"}
            keys[name] |= {"max_steps": grid.selection.max_steps, "load_best_model_at_end": False}
    recipes = check_recipes(keys.items())
    return [
        Job(f"{folder}/{name}", cell, rate, seed, recipes[name], measured) for name, (cell, rate, seed) in where.items()
    ]


def _measured_steps(grid: Grid) -> dict[str, Any]:
    """Checkpoints at the steps that are measured. Losses are measured from them, row by row, not while training."""
    if not grid.measure.at:
        return {}
    every, last = math.gcd(*grid.measure.at), shared_keys(grid).get("max_steps", -1)
    if 0 < last < max(grid.measure.at):
        raise MiloraError(f"measure.at: got {max(grid.measure.at)} with {last} steps, allowed no later step")
    return {
        "save_strategy": "steps", "save_steps": every, "save_total_limit": None,
        "eval_strategy": "no", "eval_steps": None, "load_best_model_at_end": False,
    }  # fmt: skip


def _default_rate(keys: Mapping[str, Any]) -> Rate:
    given = keys.get("learning_rate", Recipe.model_fields["learning_rate"].default)
    return MatchedRate.model_validate(given) if isinstance(given, dict) else float(given)


def _ranked(method: str) -> bool:
    from milora.methods import METHODS

    return METHODS[method].ranked if method in METHODS else method != "full"

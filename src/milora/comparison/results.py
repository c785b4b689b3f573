"""comparison.json out of what lies in the run folders: arms, differences, the front, matched learning, checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from milora.comparison.beside import Against, beside
from milora.comparison.checks import run_checks
from milora.comparison.differences import against
from milora.comparison.folder import ComparisonFolder
from milora.comparison.fronts import front, matched_pairs
from milora.comparison.gather import ArmResult, BaseResult, gather, gather_base
from milora.comparison.grid import Grid
from milora.comparison.plan import Job
from milora.comparison.prediction import measured_ratios, predicted_ratios
from milora.comparison.statistics import mean_and_stderr
from milora.runs.folder import read_json
from milora.runs.provenance import commit, hardware, versions


def results(
    grid: Grid, folder: ComparisonFolder, jobs: Sequence[Job], chosen: Mapping[str, str | None]
) -> dict[str, Any]:
    """Add everything up.

    Args:
        grid: what was asked.
        folder: where the runs lie.
        jobs: the measured runs, finished or failed.
        chosen: cell to the name of its chosen rate, for cells with several.

    Returns:
        The record of comparison.json. What was not measured is absent, or null.
    """
    arms = gather(jobs, chosen, grid.measure)
    bases = {v.label: gather_base(folder.base(v.label, len(grid.forms()) == 1), arms, v.label) for v in grid.forms()}
    differences = {id(arm): against(arm, arms, bases, grid) for arm in arms}
    return {
        "name": grid.name,
        "description": grid.description,
        "arms": [_arm(arm, arms, bases, differences, grid) for arm in arms],
        "base": {label: {"metrics": _metrics(base.by_seed)} for label, base in bases.items()},
        "pareto": front(arms, bases),
        "matched": matched_pairs(arms, grid),
        "selection": read_json(folder.selection_file),
        "checks": run_checks(grid, arms, bases),
        "settings": {"seeds": grid.seeds, "level": grid.level, "resamples": grid.resamples, "against": grid.others(),
                     "variants": [v.model_dump(mode="json") for v in grid.forms()],
                     "measure": grid.measure.model_dump(mode="json")},
        "provenance": {"versions": versions(), "commit": commit(), "hardware": hardware()},
    }  # fmt: skip


def _arm(
    arm: ArmResult,
    arms: Sequence[ArmResult],
    bases: Mapping[str, BaseResult],
    differences: Mapping[int, Against],
    grid: Grid,
) -> dict[str, Any]:
    return {
        "label": arm.label,
        "variant": arm.variant,
        "method": arm.method,
        "r": arm.r,
        "learning_rate": arm.learning_rate,
        "chosen": arm.chosen,
        "seeds": arm.seeds,
        "failed": arm.failed,
        "errors": arm.errors,
        "trainable_parameters": arm.trainable_parameters,
        "runs": arm.names,
        "metrics": _metrics(arm.by_seed),
        "against": {name: found for name, found in differences[id(arm)].items() if name in grid.others()},
        "beside": beside(arm, arms, bases, differences, grid.others()),
        "predicted": predicted_ratios(arm, arms),
        "measured": measured_ratios(arm, arms),
    }


def _metrics(by_seed: Mapping[str, Mapping[int, float]]) -> dict[str, dict[str, Any]]:
    found = {}
    for metric, values in by_seed.items():
        mean, stderr = mean_and_stderr(list(values.values()))
        found[metric] = {"mean": mean, "stderr": stderr, "by_seed": {str(seed): v for seed, v in values.items()}}
    return found

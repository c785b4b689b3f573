"""An arm against another, or against the base model: paired by seed and, where rows were answered, by test row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from milora.comparison.gather import ArmResult, BaseResult
from milora.comparison.grid import Grid
from milora.comparison.statistics import paired_difference


def against(
    arm: ArmResult, arms: Sequence[ArmResult], bases: Mapping[str, BaseResult], grid: Grid
) -> dict[str, dict[str, Any]]:
    """Other -> metric -> difference with its interval over seeds, and under ``rows`` the same over test rows.

    The others are those of the grid, and the base model.
    """
    found = {}
    for name in dict.fromkeys([*grid.others(), "base"]):
        other = bases[arm.variant] if name == "base" else counterpart(arm, arms, name)
        if other is not None and other is not arm:
            found[name] = _differences(arm, other, grid)
    return found


def counterpart(arm: ArmResult, arms: Sequence[ArmResult], label: str) -> ArmResult | None:
    """The arm of a label with which another is compared: of its variant, at its own chosen rate, of the same rank or
    the only one; None where there are several and none is of its rank."""
    own = [a for a in arms if a.label == label and a.variant == arm.variant and a.chosen]
    same = own if len(own) == 1 else [a for a in own if a.r == arm.r]
    return same[0] if len(same) == 1 else None


def _differences(arm: ArmResult, other: ArmResult | BaseResult, grid: Grid) -> dict[str, Any]:
    settings = {"level": grid.level, "resamples": grid.resamples}
    found: dict[str, Any] = {}
    for metric, values in arm.by_seed.items():
        difference = paired_difference(values, other.by_seed.get(metric, {}), **settings)
        if difference is None:
            continue
        rows = paired_difference(_by_row(arm, other, metric), _by_row(other, arm, metric), **settings)
        found[metric] = difference | ({"rows": rows} if rows else {})
    return found


def _by_row(own: ArmResult | BaseResult, other: ArmResult | BaseResult, metric: str) -> dict[str, float]:
    """The value of each test row that both have with every common seed: its mean over those seeds."""
    mine, theirs = own.by_row.get(metric, {}), other.by_row.get(metric, {})
    seeds = [seed for seed in mine if seed in theirs]
    if not seeds:
        return {}
    rows = [row for row in mine[seeds[0]] if all(row in mine[s] and row in theirs[s] for s in seeds)]
    return {row: sum(mine[s][row] for s in seeds) / len(seeds) for row in rows}

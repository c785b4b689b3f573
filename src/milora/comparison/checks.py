"""The checks of a grid, each with the value that it was judged by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from milora.comparison.expressions import Lookup, evaluate
from milora.comparison.gather import ArmResult, BaseResult
from milora.comparison.grid import Check, Grid
from milora.comparison.prediction import measured_ratios, predicted_ratios, ratio_of


def run_checks(grid: Grid, arms: Sequence[ArmResult], bases: Mapping[str, BaseResult]) -> list[dict[str, Any]]:
    """Judge every check; one whose metrics were not measured has no value and is not passed."""
    return [_judge(check, grid, arms, bases) for check in grid.checks]


def failed_gates(checks: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of the gating checks that did not pass, those without a value among them."""
    return [check["name"] for check in checks if check["gate"] and not check["passed"]]


def _judge(check: Check, grid: Grid, arms: Sequence[ArmResult], bases: Mapping[str, BaseResult]) -> dict[str, Any]:
    variant = check.variant or grid.forms()[0].label
    own = [arm for arm in arms if arm.variant == variant and arm.chosen]

    def value_of(seeds: Sequence[int]) -> float | None:
        return evaluate(check.value, _lookup(own, bases[variant], seeds))

    by_seed = {str(seed): value_of([seed]) for seed in grid.seeds}
    values = [value for value in by_seed.values() if value is not None]
    if check.over == "every":
        worst = min if check.sense == ">=" else max
        value = worst(values) if len(values) == len(grid.seeds) else None
    else:
        value = value_of(grid.seeds)
    passed = None if value is None else (value >= check.limit if check.sense == ">=" else value <= check.limit)
    return {
        "name": check.name, "what": check.value, "variant": variant, "over": check.over, "value": value,
        "by_seed": by_seed, "limit": check.limit, "sense": check.sense, "passed": passed, "gate": check.gate,
    }  # fmt: skip


def _lookup(arms: Sequence[ArmResult], base: BaseResult, seeds: Sequence[int]) -> Lookup:
    """A metric's mean over the seeds. Arms that failed with one of them have no value: a mean over fewer seeds than its
    neighbour's would compare different data."""

    def look(metric: str, label: str, type_: str | None, step: int | None) -> float | None:
        if label == "base":
            return _mean(base.by_seed.get(metric, {}), seeds)
        arm = next((arm for arm in arms if arm.label == label), None)
        if arm is None:
            return None
        if metric == "predicted":
            return ratio_of(predicted_ratios(arm, arms), type_)
        if metric == "measured":
            return ratio_of(measured_ratios(arm, arms, seeds), type_)
        suffix = f":{type_}" if type_ else f"@{step}" if step is not None else ""
        return _mean(arm.by_seed.get(metric + suffix, {}), seeds)

    return look


def _mean(by_seed: Mapping[int, float], seeds: Sequence[int]) -> float | None:
    if not all(seed in by_seed for seed in seeds):
        return None
    return sum(by_seed[seed] for seed in seeds) / len(seeds)

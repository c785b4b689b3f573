"""An arm beside another as two ratios, as MiCA (arXiv 2604.01694) gives them.

    footprint = trainable numbers of the arm / those of the other
    gain ratio = (x_arm - x_base) / (x_other - x_base)          x a task's score, or the validation loss

A gain ratio says nothing where the other has gained nothing: it is given where the other is better than the base by an
interval that leaves out zero, over test rows if there are any, else over seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from milora.comparison.differences import counterpart
from milora.comparison.gather import ArmResult, BaseResult

Against = Mapping[str, Mapping[str, Any]]  # other -> metric -> difference


def beside(
    arm: ArmResult,
    arms: Sequence[ArmResult],
    bases: Mapping[str, BaseResult],
    against: Mapping[int, Against],
    others: Sequence[str],
) -> dict[str, dict[str, Any]]:
    """Other -> {"footprint": ratio or None, "gain_ratio": {metric: ratio}}.

    Args:
        arm: which is set beside the others.
        arms: all of them.
        bases: variant to what the base model measured.
        against: id of an arm to its paired differences, those from the base among them.
        others: labels; the base is none.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in others:
        other = None if name == "base" else counterpart(arm, arms, name)
        if other is None or other is arm:
            continue
        clear = [m for m, d in against[id(other)].get("base", {}).items() if _is_gain(other, m, d)]
        ratios = {metric: _ratio(metric, arm, other, bases[arm.variant]) for metric in clear}
        counts = arm.trainable_parameters, other.trainable_parameters
        footprint = counts[0] / counts[1] if counts[0] and counts[1] else None
        found[name] = {"footprint": footprint, "gain_ratio": {m: r for m, r in ratios.items() if r is not None}}
    return found


def _ratio(metric: str, arm: ArmResult, other: ArmResult, base: BaseResult) -> float | None:
    """The ratio of the mean gains over the seeds that all three have."""
    x, y, z = (side.by_seed.get(metric, {}) for side in (arm, other, base))
    seeds = [seed for seed in x if seed in y and seed in z]
    gained, theirs = (sum(values[seed] - z[seed] for seed in seeds) for values in (x, y))
    return gained / theirs if theirs else None


def is_learning(metric: str) -> bool:
    """Whether a metric says what was learnt, at the end of a run: the validation loss, TASK:METRIC of a task."""
    described = metric.partition(":")[0] in ("norm_dW", "relative", "amplification", "intruders", "matrices")
    return metric == "validation_loss" or (":" in metric and not described and not metric.startswith("phi_"))


def _is_gain(arm: ArmResult, metric: str, difference: Mapping[str, Any]) -> bool:
    """Whether a difference from the base is one for the better, and clear of zero."""
    low, high = (difference.get("rows") or difference).get("interval") or (0.0, 0.0)
    return is_learning(metric) and (low > 0 if arm.higher_is_better.get(metric, False) else high < 0)

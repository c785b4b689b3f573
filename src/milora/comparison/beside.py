"""An arm beside another as two ratios, as MiCA (arXiv 2604.01694) gives them.

    footprint = trainable numbers of the arm / those of the other
    gain ratio = (x_arm - x_base) / (x_other - x_base)          x a task's score, or the validation loss

A gain ratio says nothing where the other has gained nothing: it is given where the other's difference from the base has
an interval that leaves out zero, over test rows if there are any, else over seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from milora.comparison.differences import counterpart
from milora.comparison.gather import ArmResult

Against = Mapping[str, Mapping[str, Any]]  # other -> metric -> difference


def beside(
    arm: ArmResult, arms: Sequence[ArmResult], against: Mapping[int, Against], others: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Other -> {"footprint": ratio or None, "gain_ratio": {metric: ratio}}.

    Args:
        arm: which is set beside the others.
        arms: all of them.
        against: id of an arm to its paired differences, those from the base among them.
        others: labels; the base is none.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in others:
        other = None if name == "base" else counterpart(arm, arms, name)
        if other is None or other is arm:
            continue
        mine, theirs = (against[id(a)].get("base", {}) for a in (arm, other))
        ratios = {m: mine[m]["difference"] / d["difference"] for m, d in theirs.items() if m in mine and _is_gain(m, d)}
        counts = arm.trainable_parameters, other.trainable_parameters
        footprint = counts[0] / counts[1] if counts[0] and counts[1] else None
        found[name] = {"footprint": footprint, "gain_ratio": ratios}
    return found


def is_learning(metric: str) -> bool:
    """Whether a metric says what was learnt, at the end of a run: the validation loss, TASK:METRIC of a task."""
    described = metric.partition(":")[0] in ("norm_dW", "relative", "amplification", "intruders", "matrices")
    return metric == "validation_loss" or (":" in metric and not described and not metric.startswith("phi_"))


def _is_gain(metric: str, difference: Mapping[str, Any]) -> bool:
    low, high = (difference.get("rows") or difference).get("interval") or (0.0, 0.0)
    return is_learning(metric) and (low > 0 or high < 0)

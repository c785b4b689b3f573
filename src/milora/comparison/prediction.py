"""How far an arm moves the weights beside LoRA: predicted before training, and measured at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from milora.analysis.prediction import ratios
from milora.comparison.gather import ArmResult

LORA = "lora"


def predicted_ratios(arm: ArmResult, arms: Sequence[ArmResult]) -> dict[str, Any] | None:
    """What was predicted of an arm beside the LoRA arm, at the rates that both have; None for LoRA itself."""
    lora = lora_of(arm, arms)
    if arm.predicted is None or lora is arm or arm.method == LORA:
        return None
    rates = (
        1.0 if lora is None or not arm.learning_rate else arm.learning_rate / (lora.learning_rate or arm.learning_rate)
    )
    by_type = {kind: ratio and ratio * rates for kind, ratio in arm.predicted["by_type"].items()}
    return {"by_type": by_type, "all": arm.predicted["all"] and arm.predicted["all"] * rates}


def measured_ratios(
    arm: ArmResult, arms: Sequence[ArmResult], seeds: Sequence[int] | None = None
) -> dict[str, Any] | None:
    """||dW|| at the end over that of the LoRA arm: the mean over common seeds of each seed's ratio.

    Args:
        arm: the arm.
        arms: all arms.
        seeds: only these.

    Returns:
        None for LoRA itself, or where one of the two was not analysed.
    """
    lora = lora_of(arm, arms)
    if lora is None or lora is arm:
        return None
    common = [seed for seed in arm.norms if seed in lora.norms and (seeds is None or seed in seeds)]
    found = [ratios(arm.norms[seed], lora.norms[seed]) for seed in common]
    if not found:
        return None
    kinds = list(found[0]["by_type"])
    return {"by_type": {kind: _mean([f["by_type"][kind] for f in found]) for kind in kinds},
            "all": _mean([f["all"] for f in found])}  # fmt: skip


def lora_of(arm: ArmResult, arms: Sequence[ArmResult]) -> ArmResult | None:
    """The LoRA arm of an arm's variant and rank, at its own chosen rate."""
    same = [a for a in arms if a.method == LORA and a.chosen and a.variant == arm.variant and a.r == arm.r]
    return same[0] if same else None


def ratio_of(ratios: Mapping[str, Any] | None, kind: str | None) -> float | None:
    """One of the ratios: of a module type, or of all weights."""
    if not ratios:
        return None
    return ratios["by_type"].get(kind) if kind else ratios.get("all")


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if len(there) == len(values) else None

"""Learning against forgetting: the Pareto front of score and KL, and KL at equal validation loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from milora.comparison.gather import ArmResult, BaseResult
from milora.comparison.grid import Grid
from milora.comparison.statistics import Point, matched, mean_and_stderr, pareto_front


def front(arms: Sequence[ArmResult], bases: Mapping[str, BaseResult]) -> list[dict[str, Any]]:
    """All arms, rates and steps as points of score and KL, means over seeds; each variant and score has its own front.

    The score is the validation loss at every step, and each task's metric at the end. The base model is a point too.
    """
    points: list[dict[str, Any]] = []
    for variant, base in bases.items():
        own = [arm for arm in arms if arm.variant == variant]
        names = dict.fromkeys(["validation_loss", *(metric for arm in own for metric in arm.higher_is_better)])
        for name in names:
            better = next((arm.higher_is_better[name] for arm in own if name in arm.higher_is_better), False)
            found = [point for arm in own for point in _points(arm, name)] + _base_point(base, name, variant)
            flags = pareto_front([(p["score"], p["kl"]) for p in found], higher_is_better=better)
            points += [p | {"higher_is_better": better, "on_front": on} for p, on in zip(found, flags, strict=True)]
    return points


def matched_pairs(arms: Sequence[ArmResult], grid: Grid) -> list[dict[str, Any]]:
    """KL at equal validation loss for each pair of arms of one variant and rank, along their steps and their rates."""
    found = []
    for a, b in combinations([arm for arm in arms if arm.chosen], 2):
        if a.variant != b.variant or (a.r != b.r and None not in (a.r, b.r)):
            continue
        by_steps, by_rates = (_by_steps(a), _by_steps(b)), (_by_rates(a, arms), _by_rates(b, arms))
        for path, paths in (("steps", by_steps), ("rates", by_rates)):
            if all(any(len(points) > 1 for points in own.values()) for own in paths):
                record = matched(*paths, level=grid.level, resamples=grid.resamples)
                place = {"a": a.label, "b": b.label, "variant": a.variant, "r": [a.r, b.r], "path": path}
                rates = {"learning_rates": [a.learning_rate, b.learning_rate]} if path == "steps" else {}
                found.append(place | rates | record)
    return found


def _points(arm: ArmResult, name: str) -> list[dict[str, Any]]:
    all_steps = sorted({step for steps in arm.steps.values() for step in steps})
    steps = all_steps if name == "validation_loss" else all_steps[-1:]
    found = []
    for step in steps:
        scores = arm.by_seed.get(f"{name}@{step}" if name == "validation_loss" else name, {})
        kls = arm.by_seed.get(f"kl@{step}", {})
        seeds = [seed for seed in scores if seed in kls]
        if seeds:
            score, kl = mean_and_stderr([scores[s] for s in seeds])[0], mean_and_stderr([kls[s] for s in seeds])[0]
            found.append(_point(arm.label, arm.variant, arm.r, arm.learning_rate, arm.chosen, name, score, kl, step))
    return found


def _base_point(base: BaseResult, name: str, variant: str) -> list[dict[str, Any]]:
    score = mean_and_stderr(list(base.by_seed.get(name, {}).values()))[0]
    return [] if score is None else [_point("base", variant, None, None, True, name, score, 0.0, 0)]


def _point(
    label: str, variant: str, r: int | None, rate: float | None, chosen: bool, name: str, score: Any, kl: Any, step: int
) -> dict[str, Any]:
    return {
        "label": label, "variant": variant, "r": r, "learning_rate": rate, "chosen": chosen, "seed": None,
        "score_name": name, "score": score, "kl": kl, "step": step,
    }  # fmt: skip


def _by_steps(arm: ArmResult) -> dict[int, list[Point]]:
    """Seed -> the points of its measured steps, in their order."""
    found = {}
    for seed, steps in arm.steps.items():
        points = [_measured(arm, seed, f"@{step}") for step in steps]
        found[seed] = [point for point in points if point is not None]
    return found


def _by_rates(arm: ArmResult, arms: Sequence[ArmResult]) -> dict[int, list[Point]]:
    """Seed -> the points at the end of its runs, in the order of their rates."""
    own = sorted((a for a in arms if a.cell == arm.cell), key=lambda a: a.learning_rate or 0.0)
    seeds = {seed for a in own for seed in a.seeds}
    found = {seed: [_measured(a, seed, "") for a in own] for seed in seeds}
    return {seed: [point for point in points if point is not None] for seed, points in found.items()}


def _measured(arm: ArmResult, seed: int, suffix: str) -> Point | None:
    loss = arm.by_seed.get(f"validation_loss{suffix}", {}).get(seed)
    kl = arm.by_seed.get(f"kl{suffix}", {}).get(seed)
    return None if loss is None or kl is None else Point(loss, kl)

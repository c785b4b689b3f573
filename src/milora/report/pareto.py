"""Learning against forgetting: each arm at each step at which both were measured, and the front.

A point is on the front if no other point is at least as good in both and better in one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from milora.report import metrics
from milora.report.arms import Arm
from milora.report.document import Cell, Folded, Picture, Section, Table, Text, measured_cell, number, text_cell
from milora.report.folders import Material
from milora.report.learning import arm_slots
from milora.report.pareto_picture import draw

BASE = -1  # the base model's slot


@dataclass(frozen=True)
class Point:
    """One arm, at one step where there are several."""

    name: str
    slot: int
    kl: float
    score: float
    kl_error: float | None = None
    score_error: float | None = None
    step: int | None = None
    on_front: bool = False
    seed: int | None = None
    chosen: bool = True


@dataclass(frozen=True)
class Front:
    """The points of one score and one variant of the base model; ``direction`` is 1 where higher is better."""

    score: str
    variant: str
    direction: int
    points: list[Point]

    def shown(self) -> list[Point]:
        """The points by the names that they have in a picture of this variant alone."""
        return [replace(p, name=p.name.replace(f"@{self.variant}", "")) for p in self.points]

    @property
    def title(self) -> str:
        return metrics.title(self.score) + ("" if self.variant == "base" else f" @{self.variant}")

    @property
    def best(self) -> list[str]:
        """The arms on the front, the base left out: it forgets nothing and is always there."""
        return list(dict.fromkeys(p.name for p in self.points if p.on_front and p.slot != BASE))


def fronts(material: Material, arms: Sequence[Arm]) -> list[Front]:
    """The fronts that a comparison wrote, or those of the arms' own means."""
    return _recorded(material.record.get("pareto") or [], arms) or _of_arms(arms)


def section(found: Sequence[Front]) -> Section | None:
    """A picture of each score against the KL, with its table."""
    blocks: list[Any] = []
    for i, front in enumerate(found):
        id = f"pareto-{i}"
        blocks += [_picture(id, front), Folded("The numbers", [_table(f"{id}-table", front)])]
    if not blocks:
        return None
    said = "Further left is less forgetting, further up is better. Full marks are on the front, joined by the dotted "
    said += "line: no other point beats them in both. A thin line joins the steps of one arm."
    return Section("pareto", "Learning against forgetting", [Text(said), *blocks])


def _recorded(rows: Sequence[Any], arms: Sequence[Arm]) -> list[Front]:
    slots = arm_slots(arms)
    found: dict[tuple[str, str], list[Point]] = {}
    direction: dict[tuple[str, str], int] = {}
    for row in rows:
        if not isinstance(row.get("kl"), int | float) or not isinstance(row.get("score"), int | float):
            continue
        key = str(row.get("score_name") or "score"), str(row.get("variant") or "base")
        arm = _arm_of(row, arms)
        label = arm.name if arm else str(row.get("label"))
        free = next(i for i in range(len(slots) + 1) if i not in slots.values())
        slot = BASE if label == "base" else slots.setdefault(label, free)
        errors = _error(arm, "kl", row), _error(arm, key[0], row)
        told = row.get("step"), bool(row.get("on_front")), row.get("seed"), row.get("chosen") is not False
        point = Point(label, slot, row["kl"], row["score"], *errors, *told)
        found.setdefault(key, []).append(point)
        better = {True: 1, False: -1}.get(row.get("higher_is_better"))
        direction[key] = better or metrics.direction(key[0])
    return [Front(*key, direction[key], points) for key, points in found.items()]


def _arm_of(row: Mapping[str, Any], arms: Sequence[Arm]) -> Arm | None:
    """The arm that a point tells of, by whatever the point names; None where that leaves several."""
    same = [arm for arm in arms if row.get("label") in (arm.label, arm.name)]
    for key in ("variant", "r", "learning_rate"):
        if key in row:
            same = [arm for arm in same if getattr(arm, key) == row[key]]
    return same[0] if len(same) == 1 else None


def _error(arm: Arm | None, name: str, row: Mapping[str, Any]) -> float | None:
    """The spread over seeds of an arm at the point's step; a single seed has none."""
    if arm is None or row.get("seed") is not None:
        return None
    found = arm.metrics.get(f"{name}@{row.get('step')}") or arm.metrics.get(name)
    value = row["kl"] if name == "kl" else row["score"]
    return found.stderr if found and abs(found.mean - value) <= 1e-6 * max(abs(found.mean), abs(value)) else None


def _of_arms(arms: Sequence[Arm]) -> list[Front]:
    slots = arm_slots(arms)
    both = [arm for arm in arms if "kl" in arm.metrics]
    names = metrics.ordered({n for a in both for n in a.shown() if n not in ("kl", "forgetting")})
    found = []
    variants = dict.fromkeys(arm.variant for arm in both)
    for name, variant in ((n, v) for n in names if metrics.direction(n) for v in variants):
        pairs = [(a, a.metrics["kl"], a.metrics[name]) for a in both if name in a.metrics and a.variant == variant]
        best = on_front([(k.mean, s.mean) for _, k, s in pairs], metrics.direction(name))
        points = [
            Point(a.name, slots[a.name], k.mean, s.mean, k.stderr, s.stderr, on_front=on)
            for (a, k, s), on in zip(pairs, best, strict=True)
        ]
        found += [Front(name, variant, metrics.direction(name), points)] if len(points) > 1 else []
    return found


def on_front(values: Sequence[tuple[float, float]], direction: int) -> list[bool]:
    """Which of the (KL, score) pairs no other pair beats; ``direction`` is 1 where a higher score is better."""
    good = [(-kl, direction * score) for kl, score in values]
    return [not any(q != p and q[0] >= p[0] and q[1] >= p[1] for q in good) for p in good]


def _table(id: str, front: Front) -> Table:
    header = [("arm", False), ("step", True), ("KL to base", True), (front.title, True), ("on the front", False)]
    rows = [
        [
            text_cell(p.name + (f", seed {p.seed}" if p.seed is not None else "")),
            Cell(f"{p.step:,}", p.step) if isinstance(p.step, int) else text_cell(None),
            measured_cell(p.kl, p.kl_error),
            measured_cell(p.score, p.score_error),
            Cell("yes" if p.on_front else "no", "a" if p.on_front else "b", mark="good" if p.on_front else ""),
        ]
        for p in front.points
    ]
    return Table(id, f"{front.title} against forgetting", header, rows)


def _picture(id: str, front: Front) -> Picture:
    title = f"{front.title} against forgetting"
    last = {p.name: p for p in sorted(front.points, key=lambda p: p.step or 0)}
    told = "; ".join(f"{p.name}: KL {number(p.kl)}, {front.title} {number(p.score)}" for p in last.values())
    alt = f"{told}. On the front: {', '.join(front.best) or 'none'}."
    return Picture(id, title, alt, lambda: draw(id, title, alt, front.title, front.direction, front.shown()))

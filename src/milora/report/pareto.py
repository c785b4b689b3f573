"""Learning against forgetting: one point for each arm, the front, and the way there where it was measured.

A point is on the front if no other point is at least as good in both and better in one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from milora.report import figure as fig
from milora.report import metrics
from milora.report.arms import Arm
from milora.report.document import Cell, Picture, Section, Table, Text, measured_cell, number, short, text_cell
from milora.report.folders import Material
from milora.report.learning import arm_slots


@dataclass(frozen=True)
class Point:
    """One arm, at one step where a comparison gives several."""

    name: str
    slot: int
    kl: float
    score: float
    kl_error: float | None = None
    score_error: float | None = None
    step: int | None = None
    on_front: bool = False
    seed: int | None = None


def section(material: Material, arms: Sequence[Arm]) -> Section | None:
    """The picture of each score against the KL, with its table."""
    points = _recorded(material.record.get("pareto") or [], arms) or _of_arms(arms)
    blocks: list[Any] = []
    for i, (score, found) in enumerate(points.items()):
        id, title = f"pareto-{i}", f"{metrics.title(score)} against forgetting"
        blocks += [_picture(id, title, score, found), _table(f"{id}-table", title, score, found)]
    if not blocks:
        return None
    said = "Down and to the left is less forgetting; the dotted line joins the points that no other point beats in both."
    return Section("pareto", "Learning against forgetting", [Text(said), *blocks])


def _recorded(rows: Sequence[Any], arms: Sequence[Arm]) -> dict[str, list[Point]]:
    slots = arm_slots(arms)
    found: dict[str, list[Point]] = {}
    for row in rows:
        if not isinstance(row.get("kl"), int | float) or not isinstance(row.get("score"), int | float):
            continue
        label, score = str(row.get("label")), str(row.get("score_name") or "score")
        arm = next((a for a in arms if label in (a.name, a.label)), None)
        slot = slots[arm.name] if arm else len(slots) + len({p.name for ps in found.values() for p in ps})
        # The spread over seeds is that of the arm's own mean: a single seed, or another step, has none here.
        own = arm is not None and row.get("seed") is None
        errors = [_error(arm, name, row[key]) if own else None for name, key in (("kl", "kl"), (score, "score"))]
        point = Point(
            arm.name if arm else label, slot, row["kl"], row["score"], *errors, row.get("step"),
            bool(row.get("on_front")), row.get("seed"),
        )  # fmt: skip
        found.setdefault(score, []).append(point)
    return found


def _error(arm: Arm | None, name: str, value: float) -> float | None:
    measured = arm.metrics.get(name) if arm else None
    same = measured is not None and abs(measured.mean - value) <= 1e-6 * max(1.0, abs(value))
    return measured.stderr if same and measured else None


def _of_arms(arms: Sequence[Arm]) -> dict[str, list[Point]]:
    slots = arm_slots(arms)
    both = [arm for arm in arms if "kl" in arm.metrics]
    names = metrics.ordered({n for a in both for n in a.metrics if n not in ("kl", "forgetting", "train_loss")})
    found: dict[str, list[Point]] = {}
    for name in (n for n in names if metrics.direction(n)):
        pairs = [(a, a.metrics["kl"], a.metrics[name]) for a in both if name in a.metrics]
        values = [(k.mean, s.mean) for _, k, s in pairs]
        front = on_front(values, metrics.direction(name))
        if len(pairs) > 1:
            found[name] = [
                Point(a.name, slots[a.name], k.mean, s.mean, k.stderr, s.stderr, on_front=best)
                for (a, k, s), best in zip(pairs, front, strict=True)
            ]
    return found


def on_front(values: Sequence[tuple[float, float]], direction: int) -> list[bool]:
    """Which of the (KL, score) pairs no other pair beats; ``direction`` is 1 where a higher score is better."""
    good = [(-kl, direction * score) for kl, score in values]
    return [not any(q != p and q[0] >= p[0] and q[1] >= p[1] for q in good) for p in good]


def _table(id: str, title: str, score: str, points: Sequence[Point]) -> Table:
    header = [("arm", False), ("step", True), ("KL to base", True), (metrics.title(score), True), ("on the front", False)]
    rows = [
        [
            text_cell(p.name + (f", seed {p.seed}" if p.seed is not None else "")),
            Cell(f"{p.step:,}", p.step) if isinstance(p.step, int) else text_cell(None),
            measured_cell(p.kl, p.kl_error),
            measured_cell(p.score, p.score_error),
            Cell("yes" if p.on_front else "no", "a" if p.on_front else "b", mark="good" if p.on_front else ""),
        ]
        for p in points
    ]
    return Table(id, title, header, rows)


def _picture(id: str, title: str, score: str, points: Sequence[Point]) -> Picture:
    front = [p.name for p in points if p.on_front]
    told = "; ".join(f"{p.name}: KL {number(p.kl)}, {metrics.title(score)} {number(p.score)}" for p in points)
    alt = f"{told}. On the front: {', '.join(dict.fromkeys(front)) or 'none'}."
    return Picture(id, title, alt, lambda: _draw(id, title, alt, score, points))


def _draw(id: str, title: str, alt: str, score: str, points: Sequence[Point]) -> str:
    with fig.new_figure(4.4) as figure:
        axis = figure.subplots()
        axis.margins(0.12)
        for name in dict.fromkeys(p.name for p in points):
            own = sorted((p for p in points if p.name == name), key=lambda p: (p.seed or 0, p.step or 0))
            _way(axis, own)
        front = sorted((p.kl, p.score) for p in points if p.on_front)
        if len(front) > 1:
            axis.plot(*zip(*front, strict=True), linestyle=(0, (1, 2)), linewidth=1.2, color=fig.INK, zorder=1)
        better = metrics.direction(score)
        if better < 0:
            axis.invert_yaxis()
        words = {1: "higher is better", -1: "lower is better, drawn upwards", 0: ""}[better]
        axis.set(xlabel="forgetting: KL to the base (nats per token), left is better")
        axis.set(ylabel=metrics.title(score) + (f"\n({words})" if words else ""))
        figure.draw_without_rendering()
        _label(axis, points)
        return fig.svg(figure, id, title, alt)


def _way(axis: Any, own: Sequence[Point]) -> None:
    look = fig.look(own[0].slot)
    for seed in dict.fromkeys(p.seed for p in own):
        way = [(p.kl, p.score) for p in own if p.seed == seed]
        if len(way) > 1:
            axis.plot(*zip(*way, strict=True), color=look["color"], linewidth=0.9, alpha=0.6, zorder=2)
    for p in own:
        axis.errorbar(
            [p.kl], [p.score], xerr=p.kl_error, yerr=p.score_error, color=look["color"], marker=look["marker"],
            markersize=8 if p.on_front else 6, fillstyle="full" if p.on_front else "none", elinewidth=1, capsize=2.5,
            linestyle="", zorder=3,
        )  # fmt: skip


def _label(axis: Any, points: Sequence[Point]) -> None:
    """Write each name beside its last point, moved up or down until no two stand on one another."""
    last = {p.name: p for p in sorted(points, key=lambda p: p.step or 0)}
    placed: list[tuple[float, float, float]] = []  # left, right, height
    box = axis.get_window_extent()
    for p in sorted(last.values(), key=lambda p: -axis.transData.transform((p.kl, p.score))[1]):
        x, y = axis.transData.transform((p.kl, p.score))
        text = short(p.name, 30)
        width = 5.2 * len(text)
        leftwards = x + width + 12 > box.x1
        x0 = x - width - 9 if leftwards else x + 9
        height = y + 5
        while any(x0 < right and left < x0 + width and abs(height - h) < 11 for left, right, h in placed):
            height -= 2
        placed.append((x0, x0 + width, height))
        far = abs(height - y) > 12
        axis.annotate(
            text, (p.kl, p.score), xytext=(-9 if leftwards else 9, height - y), textcoords="offset points",
            ha="right" if leftwards else "left", va="center", color=fig.INK,
            arrowprops={"arrowstyle": "-", "color": fig.MUTED, "linewidth": 0.6} if far else None,
        )  # fmt: skip

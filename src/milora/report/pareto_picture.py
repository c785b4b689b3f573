"""The picture of learning against forgetting: points with their errors, ways, the front, and names beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from milora.report import figure as fig
from milora.report.document import number, short

# Where a name may stand beside its point: right, left and above, in points of the picture.
PLACES = [(side, up) for up in (7, -7, 17, -17, 28, -28, 40, -40) for side in (1, -1)]
Box = tuple[float, float, float, float]  # left, right, low, high
FAR = 2.5  # spreads of the arms
LETTER, LINE, MARK = 5.0, 10.0, 6.0  # width of a letter, height of a line, half a marker


def draw(id: str, title: str, alt: str, score: str, direction: int, points: Sequence[Any]) -> str:
    """The SVG of one front.

    Args:
        id, title, alt: of the picture.
        score: the title of what is learned.
        direction: 1 where a higher score is better, -1 where a lower one is, which then stands higher.
        points: of ``pareto.Point``.
    """
    with fig.new_figure(4.4) as figure:
        axis = figure.subplots()
        axis.margins(0.12)
        for name in dict.fromkeys(p.name for p in points):
            _way(axis, sorted((p for p in points if p.name == name), key=lambda p: (p.seed or 0, p.step or 0)))
        front = sorted({(p.kl, p.score) for p in points if p.on_front})
        if len(front) > 1:
            axis.plot(*zip(*front, strict=True), linestyle=(0, (1, 2)), linewidth=1.2, color=fig.INK, zorder=1)
        beyond = _leave_base_out(axis, points)
        if direction < 0:
            axis.invert_yaxis()
        words = {1: "\n(higher is better)", -1: "\n(lower is better, drawn upwards)"}.get(direction, "")
        axis.set(xlabel="forgetting: KL to the base (nats per token), left is better", ylabel=short(score, 50) + words)
        figure.draw_without_rendering()
        _name(axis, [p for p in points if p not in beyond])
        return fig.svg(figure, id, title, alt)


def _leave_base_out(axis: Any, points: Sequence[Any]) -> list[Any]:
    """Zoom in on the arms where the base is so far from them that they could not be told apart; say where it is."""
    base, others = [p for p in points if p.slot < 0], [p for p in points if p.slot >= 0]
    if not base or len(others) < 2:
        return []
    spread = max(p.score for p in others) - min(p.score for p in others)
    if spread <= 0 or max(abs(b.score - p.score) for b in base for p in others) < FAR * spread:
        return []
    for low, high, set_limits in (
        (min(p.kl - (p.kl_error or 0) for p in others), max(p.kl + (p.kl_error or 0) for p in others), axis.set_xlim),
        (min(p.score for p in others), max(p.score for p in others), axis.set_ylim),
    ):
        set_limits(low - 0.15 * (high - low), high + 0.15 * (high - low))
    told = f"the base is beyond the edge: KL {number(base[0].kl)}, {number(base[0].score)}"
    axis.text(0.01, 0.02, told, transform=axis.transAxes, color=fig.MUTED)
    return base


def _way(axis: Any, own: Sequence[Any]) -> None:
    look = fig.look(own[0].slot)
    shade = 1.0 if own[0].chosen else 0.45
    for seed in dict.fromkeys(p.seed for p in own):
        way = [(p.kl, p.score) for p in own if p.seed == seed]
        if len(way) > 1:
            axis.plot(*zip(*way, strict=True), color=look["color"], linewidth=0.9, alpha=0.6 * shade, zorder=2)
    for p in own:
        axis.errorbar(
            [p.kl], [p.score], xerr=p.kl_error, yerr=p.score_error, color=look["color"], marker=look["marker"],
            markersize=8 if p.on_front else 6, fillstyle="full" if p.on_front else "none", elinewidth=1, capsize=2.5,
            linestyle="", zorder=3, alpha=shade,
        )  # fmt: skip


def _name(axis: Any, points: Sequence[Any]) -> None:
    """Write the name of each chosen arm beside its last point, where it stands on no other name and on no point."""
    last = {p.name: p for p in sorted(points, key=lambda p: p.step or 0) if p.chosen}
    at = {p.name: axis.transData.transform((p.kl, p.score)) for p in last.values()}
    taken = [_around(*axis.transData.transform((p.kl, p.score))) for p in points]
    inside = axis.get_window_extent()
    for name, (x, y) in sorted(at.items(), key=lambda item: -item[1][1]):
        text = short(name, 28)
        width = LETTER * len(text)

        def box(place: tuple[int, int], x: float = x, y: float = y, width: float = width) -> Box:
            left = x + 9 if place[0] > 0 else x - 9 - width
            return left, left + width, y + place[1] - LINE / 2, y + place[1] + LINE / 2

        def cost(place: tuple[int, int]) -> int:
            left, right, low, high = box(place)
            out = left < inside.x0 or right > inside.x1 or low < inside.y0 or high > inside.y1
            return 3 * out + sum(left < x1 and x0 < right and low < y1 and y0 < high for x0, x1, y0, y1 in taken)

        side, up = best = min(PLACES, key=cost)
        taken.append(box(best))
        p = last[name]
        axis.annotate(
            text, (p.kl, p.score), xytext=(9 * side, up), textcoords="offset points", color=fig.INK,
            ha="left" if side > 0 else "right", va="center",
            arrowprops={"arrowstyle": "-", "color": fig.MUTED, "linewidth": 0.6} if abs(up) > 11 else None,
        )  # fmt: skip


def _around(x: float, y: float) -> Box:
    return x - MARK, x + MARK, y - MARK, y + MARK

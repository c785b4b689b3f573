"""Pictures of lines: losses, retention, sweeps, spectra. A gap in a line is a value that is not there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from milora.report import figure as fig
from milora.report.document import number, rate, short

Points = list[tuple[float, float | None]]


@dataclass(frozen=True)
class Series:
    """One line: its points, an error for each or none, and thin lines behind it (the single seeds)."""

    name: str
    slot: int
    points: Points
    errors: list[float | None] = field(default_factory=list)
    behind: list[Points] = field(default_factory=list)
    ringed: int | None = None  # the point that was chosen
    variant: str = "base"  # of the base model

    @property
    def legend(self) -> str:
        """Its name within the pictures of one variant."""
        return self.name.replace(f"@{self.variant}", "")


@dataclass(frozen=True)
class Panel:
    """One pair of axes. ``x_ticks`` are the values that stand under it, where few stand for all."""

    title: str
    x: str
    y: str
    series: list[Series]
    x_log: bool = False
    y_log: bool = False
    x_ticks: list[float] = field(default_factory=list)
    markers: bool = True


def split(panels: Sequence[Panel], most: int = 8) -> list[Panel]:
    """One panel for each variant of the base model, and for every ``most`` lines: more cannot be told apart."""
    found = []
    for panel in panels:
        variants = dict.fromkeys(s.variant for s in panel.series)
        for variant in variants:
            own = [s for s in panel.series if s.variant == variant]
            for i in range(0, len(own), most):
                parts = [panel.title, f"@{variant}" if len(variants) > 1 else "", f"({i // most + 1})" if i else ""]
                title = " ".join(part for part in parts if part)
                found.append(replace(panel, title=title, series=own[i : i + most]))
    return found


def draw(id: str, title: str, alt: str, panels: Sequence[Panel]) -> str:
    """The panels as one SVG with one legend under them."""
    columns = 1 if len(panels) == 1 else 2
    rows = math.ceil(len(panels) / columns)
    names = list(dict.fromkeys(s.legend for panel in panels for s in panel.series))
    legend = 0.25 * math.ceil(len(names) / _columns(names)) + 0.15
    with fig.new_figure((3.5 if columns == 1 else 2.6 * rows) + legend) as figure:
        axes = figure.subplots(rows, columns, squeeze=False)
        handles: dict[str, Any] = {}
        for axis, panel in zip(axes.flat, panels, strict=False):
            handles = _panel(axis, panel) | handles
        for axis in axes.flat[len(panels) :]:
            axis.set_axis_off()
        if names:
            shown = [(handles[name], short(name)) for name in names]
            figure.legend(*zip(*shown, strict=True), loc="outside lower center", ncols=_columns(names))
        return fig.svg(figure, id, title, alt)


def _columns(names: Sequence[str]) -> int:
    return max(1, min(len(names), 4, int(88 / (max(len(short(n)) for n in names) + 7))))


def _panel(axis: Any, panel: Panel) -> dict[str, Any]:
    handles = {}
    if panel.x_log:
        axis.set_xscale("log")
    if panel.y_log:
        axis.set_yscale("log")
    for series in panel.series:
        look = fig.look(series.slot) | ({} if panel.markers else {"marker": ""})
        for points in series.behind:
            x, y = _xy(points)
            axis.plot(x, y, color=look["color"], linewidth=0.7, alpha=0.4)
        x, y = _xy(series.points)
        errors = [math.nan if e is None else e for e in series.errors]
        if any(e == e for e in errors):
            axis.errorbar(x, y, yerr=errors, fmt="none", ecolor=look["color"], elinewidth=1, capsize=2.5)
        every = max(1, len(x) // 12)
        handles[series.legend] = axis.plot(x, y, markevery=every, **look)[0]
        if series.ringed is not None:
            ring = {"marker": "o", "markersize": 12, "fillstyle": "none", "markeredgewidth": 1.3}
            axis.plot([x[series.ringed]], [y[series.ringed]], linestyle="", color=look["color"], **ring)
    if len(panel.x_ticks) > 0:
        axis.set_xticks(panel.x_ticks, [_tick(tick) for tick in panel.x_ticks], minor=False)
        axis.minorticks_off()
    if not panel.x_log:
        fig.whole_numbers(axis.xaxis)
    if panel.y_log:
        fig.plain_log(axis.yaxis)
    axis.set(xlabel=panel.x, ylabel=panel.y)
    if panel.title:
        axis.set_title(short(panel.title, 48), loc="left")
    return handles


def _tick(value: float) -> str:
    return f"{value:g}" if value >= 1 else rate(value)


def _xy(points: Points) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [math.nan if y is None else y for _, y in points]


def from_to(series: Sequence[Series], what: str) -> str:
    """The ends of each line in words, for people who do not see the picture."""
    told = []
    for s in series:
        there = [(x, y) for x, y in s.points if y is not None]
        if len(there) == 1:
            told.append(f"{s.name} {number(there[0][1])} at {there[0][0]:g}")
        elif there:
            (x0, y0), (x1, y1) = there[0], there[-1]
            told.append(f"{s.name} from {number(y0)} at {x0:g} to {number(y1)} at {x1:g}")
    return f"{what}: " + "; ".join(told) + "." if told else f"{what}: no value."


def mean_line(lines: Sequence[Points]) -> tuple[Points, list[float | None]]:
    """The mean over lines at each x at which all of them have a value, and its standard error."""
    at: dict[float, list[float | None]] = {}
    for points in lines:
        for x, y in points:
            at.setdefault(x, []).append(y)
    whole = {x: ys for x, ys in sorted(at.items()) if len(ys) == len(lines)}
    mean: Points = []
    errors: list[float | None] = []
    for x, ys in whole.items():
        values = [y for y in ys if y is not None]
        if len(values) < len(ys):
            mean.append((x, None))
            errors.append(None)
            continue
        m = math.fsum(values) / len(values)
        mean.append((x, m))
        n = len(values)
        errors.append(math.sqrt(math.fsum((v - m) ** 2 for v in values) / (n - 1) / n) if n > 1 else None)
    return mean, errors

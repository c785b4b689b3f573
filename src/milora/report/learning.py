"""How the arms learned: losses, validation, forgetting as training goes, sweeps over ranks and learning rates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from milora.report import figure as fig
from milora.report import lines, metrics
from milora.report.arms import Arm, Measured
from milora.report.document import (
    Cell,
    Folded,
    Picture,
    Section,
    Table,
    Text,
    count_cell,
    measured_cell,
    number_cell,
    rate,
    text_cell,
)
from milora.report.folders import Run
from milora.report.lines import Panel, Points, Series


def picture(id: str, title: str, alt: str, panels: Sequence[Panel]) -> Picture:
    """A picture of lines, drawn when it is asked for."""
    return Picture(id, title, alt, lambda: lines.draw(id, title, alt, lines.split(panels)))


def arm_slots(arms: Sequence[Arm]) -> dict[str, int]:
    """The look of each arm by its name; arms on other variants of the base model may look alike."""
    found: dict[str, int] = {}
    for variant in dict.fromkeys(arm.variant for arm in arms):
        own = [arm for arm in arms if arm.variant == variant]
        found |= zip((a.name for a in own), fig.slots([a.name for a in own], [a.method for a in own]), strict=True)
    return found


def losses(arms: Sequence[Arm]) -> Section | None:
    """Training loss by step: the mean over seeds, thin lines for single seeds."""
    return _curves(arms, "loss", "Training loss", "loss-curves", "training loss (nats per token)")


def validation(arms: Sequence[Arm]) -> Section | None:
    """Validation loss by step."""
    return _curves(arms, "eval_loss", "Validation loss", "validation-curves", "validation loss (nats per token)")


def _curves(arms: Sequence[Arm], key: str, title: str, id: str, axis: str) -> Section | None:
    slots = arm_slots(arms)
    series = [s for arm in arms if (s := _series(arm, slots[arm.name], lambda run: _points(run, key)))]
    if not any(len(s.points) > 1 for s in series):
        return None
    panels = [Panel("", "step", axis, series, markers=key != "loss")]
    blocks: list[Any] = [picture(id, title, lines.from_to(series, title), panels)]
    lost = [
        f"{run.name} from step {first}"
        for arm in arms for run in arm.runs
        if (first := next((r.get("step") for r in run.metrics if key in r and r[key] is None), None)) is not None
    ]  # fmt: skip
    if lost:
        blocks.append(Text(f"A {title.lower()} that is no number leaves a gap in its line: {', '.join(lost)}."))
    if any(s.behind for s in series):
        blocks.append(Text("Thick: the mean over seeds, where every seed has a value. Thin: single seeds."))
    return Section(id, f"{title} by step", [*blocks, _ends(series, title, id)])


def _ends(series: Sequence[Series], title: str, id: str) -> Folded:
    rows = []
    for s in series:
        values = [(x, y) for x, y in s.points if y is not None]
        first, last = (values[0], values[-1]) if values else ((None, None), (None, None))
        best = min(values, key=lambda p: p[1]) if values else (None, None)
        cells = [number_cell(v) for point in (first, best, last) for v in reversed(point)]
        rows.append([text_cell(s.name), *cells])
    header = [("arm", False), *((h, True) for h in ("first", "at step", "lowest", "at step ", "last", "at step  "))]
    return Folded(
        "The numbers", [Table(f"{id}-ends", f"{title}: first, lowest and last, mean over seeds", header, rows)]
    )


def _points(run: Run, key: str) -> Points:
    return [(float(r["step"]), r[key]) for r in run.metrics if key in r and isinstance(r.get("step"), int | float)]


def _series(arm: Arm, slot: int, points: Callable[[Run], Points]) -> Series | None:
    found = [p for run in arm.runs if (p := points(run))]
    if not found:
        return None
    mean, _ = lines.mean_line(found)
    # Seeds that were logged at different steps have no mean: the first one stands for the arm.
    return Series(arm.name, slot, mean or found[0], behind=found if len(found) > 1 else [], variant=arm.variant)


def retention(arms: Sequence[Arm], bases: Mapping[str, Mapping[str, Measured]]) -> Section | None:
    """Forgetting, scores and losses at the steps at which they were measured; step 0 is the base."""
    slots = arm_slots(arms)
    values = {arm.name: _retained(arm) or _measured_at(arm, bases.get(arm.variant, {})) for arm in arms}
    names = metrics.ordered({name for found in values.values() for name in found})
    panels: list[Panel] = []
    for name in names:
        found = [(arm, *values[arm.name][name]) for arm in arms if name in values[arm.name]]
        series = [
            Series(arm.name, slots[arm.name], points, errors, variant=arm.variant) for arm, points, errors in found
        ]
        panels.append(Panel(metrics.title(name), "step", "", series))
    if not panels:
        return None
    alt = " ".join(lines.from_to(panel.series, panel.title) for panel in panels)
    rows = [
        [text_cell(s.name), text_cell(panel.title), count_cell(int(x)), measured_cell(y, error)]
        for panel in panels for s in panel.series
        for (x, y), error in zip(s.points, s.errors, strict=True)
    ]  # fmt: skip
    header = [("arm", False), ("measurement", False), ("step", True), ("value", True)]
    table = Table("retention-table", "Measured while training; step 0 is the base model", header, rows)
    shown = picture("retention", "Learning and forgetting as training goes", alt, panels)
    return Section("retention-section", "Retention by step", [shown, Folded("The numbers", [table])])


Line = tuple[Points, list[float | None]]


def _retained(arm: Arm) -> dict[str, Line]:
    """The lines of ``retention.json``: the mean over the runs that have one.

    The errors are those between runs; of a single run, those of its evaluation runs.
    """
    found: dict[str, list[Line]] = {}
    for run in arm.runs:
        own: dict[str, Line] = {}
        for row in metrics.retention_rows(run):
            of_scores = metrics.retained_errors(row)
            for name, value in metrics.retained(row).items():
                points, errors = own.setdefault(name, ([], []))
                points.append((float(row["step"]), value))
                errors.append(of_scores.get(name))
        for name, line in own.items():
            if any(y is not None for _, y in line[0]):
                found.setdefault(name, []).append(line)
    return {
        name: runs[0] if len(runs) == 1 else lines.mean_line([points for points, _ in runs])
        for name, runs in found.items()
    }


def _measured_at(arm: Arm, base: Mapping[str, Measured]) -> dict[str, Line]:
    """The lines of ``METRIC@STEP`` that a comparison measured, from the base on."""
    found: dict[str, Line] = {}
    for name, steps in metrics.at_steps(arm.metrics).items():
        start = [(0.0, base[name])] if name in base else []
        all_of = start + [(float(step), arm.metrics[at]) for step, at in steps]
        if len(all_of) > 1:
            found[name] = [(x, m.mean) for x, m in all_of], [m.stderr for _, m in all_of]
    return found


def ranks(arms: Sequence[Arm]) -> Section | None:
    """Each metric over the rank, for labels that were run at two ranks or more on one variant."""
    lines_of: dict[str, list[Arm]] = {}
    for arm in arms:
        same = (arm.label, arm.variant, arm.r)
        crowded = sum(1 for a in arms if (a.label, a.variant, a.r) == same) > 1
        if arm.r is not None:
            name = arm.label if arm.variant == "base" else f"{arm.label}@{arm.variant}"
            name += f" lr={rate(arm.learning_rate)}" if crowded else ""
            lines_of.setdefault(name, []).append(arm)
    swept = {name: sorted(a, key=lambda a: a.r or 0) for name, a in lines_of.items() if len({x.r for x in a}) > 1}
    if not swept:
        return None
    looks = fig.slots(list(swept), [a[0].method for a in swept.values()])
    every = [arm for a in swept.values() for arm in a]
    ticks = sorted({float(arm.r or 0) for arm in every})
    panels = []
    for metric in metrics.ordered({m for arm in every for m in arm.shown() if not m.startswith("phi_")}):
        series = []
        for (name, a), slot in zip(swept.items(), looks, strict=True):
            here = [arm for arm in a if metric in arm.metrics]
            points: Points = [(float(arm.r or 0), arm.metrics[metric].mean) for arm in here]
            errors = [arm.metrics[metric].stderr for arm in here]
            series += [Series(name, slot, points, errors, variant=a[0].variant)] if points else []
        panels.append(Panel(metrics.title(metric), "rank r", "", series, x_log=True, x_ticks=ticks))
    alt = " ".join(lines.from_to(panel.series, panel.title) for panel in panels)
    return (
        Section("ranks", "Rank sweep", [picture("rank-sweep", "Measurements by rank", alt, panels)]) if panels else None
    )


def rates(selection: Mapping[str, Any], arms: Sequence[Arm]) -> Section | None:
    """The validation losses by which each method's learning rate was chosen."""
    found = {label: s for label, s in selection.items() if isinstance(s, dict) and s.get("rates")}
    if not found:
        return None
    methods = [next((a.method for a in arms if label.startswith(a.label)), label) for label in found]
    series, rows = [], []
    for (label, chosen), slot in zip(found.items(), fig.slots(list(found), methods), strict=True):
        tried = sorted((t for t in chosen["rates"] if t.get("learning_rate")), key=lambda t: t["learning_rate"])
        points: Points = [(t["learning_rate"], t.get("validation_loss")) for t in tried]
        ringed = next((i for i, t in enumerate(tried) if t.get("chosen") and points[i][1] is not None), None)
        series.append(Series(label, slot, points, [t.get("stderr") for t in tried], ringed=ringed))
        rows += [[text_cell(label), *_rate_cells(t)] for t in tried]
    header = [("method", False), ("learning rate", True), ("seeds", True), ("failed", True), ("validation loss", True)]
    header += [("chosen", False)]
    table = Table("rates-table", "Learning rates that were tried on the validation split", header, rows)
    told = [f"{s.name} {rate(s.points[s.ringed][0])}" for s in series if s.ringed is not None]
    alt = lines.from_to(series, "Validation loss by learning rate") + (f" Chosen: {', '.join(told)}." if told else "")
    ticks = sorted({x for s in series for x, _ in s.points})
    panel = Panel("", "learning rate", "validation loss (nats per token)", series, x_log=True, x_ticks=ticks)
    shown = picture(
        "rate-selection", "Validation loss by learning rate; a ring marks the rate that was chosen", alt, [panel]
    )
    said = "The validation losses from which the learning rate of each method was chosen."
    return Section("rates", "Choice of the learning rate", [Text(said), shown, Folded("The numbers", [table])])


def _rate_cells(tried: Mapping[str, Any]) -> list[Cell]:
    chosen = bool(tried.get("chosen"))
    loss = tried.get("validation_loss")
    return [
        Cell(rate(tried["learning_rate"]), tried["learning_rate"]),
        count_cell(tried.get("seeds")),
        count_cell(len(tried.get("failed") or [])),
        measured_cell(loss, tried.get("stderr"), mark="strong" if chosen else ""),
        Cell("chosen" if chosen else "no", "a" if chosen else "b", mark="good" if chosen else ""),
    ]

"""The main tables: what was checked, what each arm reached, and how far it is from LoRA and from the base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from milora.report import metrics
from milora.report.arms import Arm
from milora.report.document import (
    Cell,
    Section,
    Table,
    Text,
    count_cell,
    interval,
    measured_cell,
    missing,
    number,
    number_cell,
    rate,
    text_cell,
)
from milora.report.folders import Material

VERDICTS = {True: ("passed", "good"), False: ("failed", "bad"), None: ("not measured", "missing")}


def checks(record: Mapping[str, Any]) -> Section | None:
    """Each check with its value and limit; one that was not measured has neither passed nor failed."""
    rows = []
    for check in record.get("checks") or []:
        verdict, mark = VERDICTS[check.get("passed") if check.get("value") is not None else None]
        limit = check.get("limit")
        rows.append(
            [
                Cell(verdict, verdict, mark=mark),
                text_cell(str(check.get("name") or "")),
                text_cell(check.get("what")),
                number_cell(check.get("value")),
                Cell(f"{_sense(check)} {number(limit)}", limit) if isinstance(limit, int | float) else text_cell(None),
                Cell("gate", "a") if check.get("gate") else Cell("report only", "b"),
            ]
        )
    header = [("result", False), ("check", False), ("what", False), ("value", True), ("limit", True), ("kind", False)]
    table = Table("checks-table", "Checks", header, rows)
    said = "A gate fails the comparison; the others are reported and decide nothing."
    return Section("checks", "Checks", [Text(said), table]) if rows else None


def _sense(check: Mapping[str, Any]) -> str:
    return {">=": "≥", "<=": "≤"}.get(str(check.get("sense")), str(check.get("sense") or ""))


def table(arms: Sequence[Arm], base: Mapping[str, float]) -> Section | None:
    """Every arm with every metric: mean and standard error over its seeds, the best of each column marked."""
    if not arms:
        return None
    names = metrics.ordered({name for arm in arms for name in arm.metrics} | set(base))
    best = {name: _best(arms, name) for name in names}
    header = [("arm", False), ("method", False), ("r", True), ("learning rate", True), ("seeds", True)]
    header += [("trainable", True)] + [(metrics.title(name) + _arrow(name), True) for name in names]
    rows = [[*_who(arm), *(_metric(arm, name, best[name]) for name in names)] for arm in arms]
    if base and not any(arm.label == "base" for arm in arms):
        blank = [text_cell(None)] * 4
        values = [measured_cell(base.get(name), None) for name in names]
        rows.append([text_cell("base"), text_cell("untuned model"), *blank, *values])
    said = "Mean ± standard error over seeds; no error where there is one seed. ↑ higher is better, ↓ lower is better."
    said += " Bold is the best mean of a column, which need not be a clear difference: see the paired differences."
    return Section("results", "Results", [Text(said), Table("results-table", "Results by arm", header, rows)])


def _who(arm: Arm) -> list[Cell]:
    seeds = f"{len(arm.seeds)}" + (f" ({len(arm.failed)} failed)" if arm.failed else "")
    return [
        text_cell(arm.name),
        text_cell(arm.method),
        count_cell(arm.r) if arm.r is not None else text_cell(None),
        Cell(rate(arm.learning_rate), arm.learning_rate),
        Cell(seeds, len(arm.seeds), {"seeds": arm.seeds, "failed": arm.failed}, "bad" if arm.failed else ""),
        count_cell(arm.trainable),
    ]


def _metric(arm: Arm, name: str, best: float | None) -> Cell:
    found = arm.metrics.get(name)
    if found is None:
        return missing()
    return measured_cell(found.mean, found.stderr, len(found.by_seed), "strong" if found.mean == best else "")


def _best(arms: Sequence[Arm], name: str) -> float | None:
    values = [metrics.direction(name) * arm.metrics[name].mean for arm in arms if name in arm.metrics]
    return max(values) * metrics.direction(name) if metrics.direction(name) and len(values) > 1 else None


def _arrow(name: str) -> str:
    return {1: " ↑", -1: " ↓", 0: ""}[metrics.direction(name)]


def differences(arms: Sequence[Arm]) -> Section | None:
    """Paired differences against LoRA and against the base, with their intervals."""
    blocks: list[Any] = []
    for other, title in (("lora", "LoRA"), ("base", "the base model")):
        names = metrics.ordered({n for arm in arms for n in arm.against.get(other) or {}})
        rows = [
            [text_cell(arm.name), *(_difference(arm.against[other].get(name)) for name in names)]
            for arm in arms if arm.against.get(other)
        ]  # fmt: skip
        if rows:
            header = [("arm", False)] + [(metrics.title(name) + _arrow(name), True) for name in names]
            blocks.append(Table(f"against-{other}", f"Difference to {title}, paired by seed", header, rows))
    if not blocks:
        return None
    levels = {c.get("level") for a in arms for side in a.against.values() for c in (side or {}).values() if c}
    level = next((f"{100 * lv:g} %" for lv in levels if isinstance(lv, int | float)), "")
    said = f"Difference [{level + ' ' if level else ''}interval], n pairs. Bold where the interval leaves out zero."
    return Section("differences", "Paired differences", [Text(said), *blocks])


def _difference(found: Mapping[str, Any] | None) -> Cell:
    if not found or not isinstance(found.get("difference"), int | float):
        return missing()
    low, high = bounds(found)
    clear = low is not None and high is not None and (low > 0 or high < 0)
    n = found.get("n")
    text = interval(found["difference"], low, high) + (f", n {n}" if n is not None else "")
    return Cell(text, found["difference"], dict(found), "strong" if clear else "")


def bounds(found: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """The ends of an interval; None where it was not measured."""
    ends = found.get("interval") or [None, None]
    return (ends[0], ends[1]) if len(ends) == 2 else (None, None)


def matched(record: Mapping[str, Any]) -> Section | None:
    """Forgetting at equal learning: the rows of the comparison as they stand."""
    rows = [_flat(row) for row in record.get("matched") or [] if isinstance(row, dict)]
    if not rows:
        return None
    keys = list(dict.fromkeys(key for row in rows for key in row))
    numeric = {k: all(isinstance(r.get(k), int | float | None) for r in rows) for k in keys}
    cells = [[_plain(row.get(key)) for key in keys] for row in rows]
    header = [(key.replace("_", " "), numeric[key]) for key in keys]
    said = "Methods compared where they learned equally much, not after equally many steps."
    shown = Table("matched-table", "Forgetting at matched learning", header, cells)
    return Section("matched", "Matched learning", [Text(said), shown])


def _flat(row: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{above}{key} ")
        elif key == "interval" and isinstance(value, list) and len(value) == 2:
            flat |= {f"{above}low": value[0], f"{above}high": value[1]}
        else:
            flat[above + key] = value
    return flat


def _plain(value: Any) -> Cell:
    if value is None:
        return missing()
    if isinstance(value, bool):
        return Cell("yes" if value else "no", "a" if value else "b", value)
    if isinstance(value, int):
        return count_cell(value)
    if isinstance(value, float):
        return number_cell(value)
    return text_cell(", ".join(map(str, value)) if isinstance(value, list) else str(value))


def scores(material: Material) -> Section | None:
    """Base and tuned scores of each run beside one another, as its evaluation wrote them."""
    rows = []
    for run in material.runs:
        for row in run.results.get("comparison") or []:
            better = {True: 1, False: -1}.get(row.get("higher_is_better"), 0)
            gain = (row.get("difference") or 0) * better
            mark = "" if abs(row.get("difference") or 0) <= 2 * (row.get("difference_stderr") or 0) else "strong"
            rows.append(
                [
                    text_cell(run.name), text_cell(row.get("task")),
                    text_cell(metrics.task_metric(row).partition(":")[2]), count_cell(row.get("n")),
                    *(measured_cell(row.get(side), row.get(f"{side}_stderr")) for side in ("base", "tuned")),
                    measured_cell(row.get("difference"), row.get("difference_stderr"), mark=mark),
                    Cell({1: "better", -1: "worse", 0: "–"}[(gain > 0) - (gain < 0)], gain),
                ]
            )  # fmt: skip
    if not rows:
        return None
    header = [("run", False), ("task", False), ("metric", False), ("rows", True), ("base", True), ("tuned", True)]
    header += [("difference", True), ("tuned is", False)]
    said = "Score ± standard error over the rows of a task; the difference is paired by row. Bold: over two errors."
    return Section("scores", "Task scores of each run", [Text(said), Table("scores-table", "Task scores", header, rows)])

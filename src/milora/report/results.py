"""The main tables: what was checked, what each arm reached, and how far it is from LoRA and from the base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from milora.report import metrics
from milora.report.arms import Arm, Measured
from milora.report.document import (
    Cell,
    Folded,
    Section,
    Table,
    Text,
    count_cell,
    interval,
    measured_cell,
    missing,
    plain_cell,
    rate,
    text_cell,
)
from milora.report.folders import Material

LONG = 12  # rows of a table that nobody reads from end to end
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
                text_cell(check_name(check)),
                text_cell(check.get("what")),
                plain_cell(check.get("value")),
                Cell(f"{_sense(check)} {limit:g}", limit) if isinstance(limit, int | float) else text_cell(None),
                Cell("gate", "a") if check.get("gate") else Cell("report only", "b"),
            ]
        )
    header = [("result", False), ("check", False), ("what", False), ("value", True), ("limit", True), ("kind", False)]
    table = Table("checks-table", "Checks", header, rows)
    said = "A gate fails the comparison; the others are reported and decide nothing."
    return Section("checks", "Checks", [Text(said), table]) if rows else None


def check_name(check: Mapping[str, Any]) -> str:
    """A check's name with its variant of the base model, where that is not the only one."""
    variant = check.get("variant")
    return str(check.get("name") or "") + (f" @{variant}" if variant not in (None, "base") else "")


def _sense(check: Mapping[str, Any]) -> str:
    return {">=": "≥", "<=": "≤"}.get(str(check.get("sense")), str(check.get("sense") or ""))


def table(arms: Sequence[Arm], bases: Mapping[str, Mapping[str, Measured]]) -> Section | None:
    """Every arm with every metric: mean and standard error over its seeds, the best of each column marked.

    Args:
        arms: all; those whose rate was not chosen stand in a table of their own.
        bases: of ``bases_of``.
    """
    if not arms:
        return None
    said = "Mean ± standard error over seeds; no error where there is one seed. ↑ higher is better, ↓ lower is better."
    said += " Bold is the best mean of a column for each base model, which need not be a clear difference: the paired"
    said += " differences tell."
    shown = [arm for arm in arms if arm.chosen]
    blocks: list[Any] = [Text(said), _table("results-table", "Results by arm", shown, bases)]
    if others := [arm for arm in arms if not arm.chosen]:
        blocks.append(
            Folded("At rates that were not chosen", [_table("other-rates", "Results at other rates", others, {})])
        )
    return Section("results", "Results", blocks)


def _table(id: str, caption: str, arms: Sequence[Arm], bases: Mapping[str, Mapping[str, Measured]]) -> Table:
    names = metrics.ordered(
        {n for arm in arms for n in arm.shown()} | {n for b in bases.values() for n in b if metrics.whole(n)}
    )
    best = {(a.variant, n): _best([b for b in arms if b.variant == a.variant], n) for a in arms for n in names}
    header = [("arm", False), ("method", False), ("r", True), ("learning rate", True), ("seeds", True)]
    header += [("trainable", True)] + [(metrics.title(name) + _arrow(name), True) for name in names]
    rows = [[*_who(arm), *(_metric(arm.metrics.get(name), best[arm.variant, name]) for name in names)] for arm in arms]
    for variant, base in bases.items():
        name = "base" if variant == "base" else f"base@{variant}"
        values = [_metric(base.get(metric), None) for metric in names]
        rows.append([text_cell(name), text_cell("untuned model"), *[text_cell(None)] * 4, *values])
    return Table(id, caption, header, rows)


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


def _metric(found: Measured | None, best: float | None) -> Cell:
    if found is None:
        return missing()
    return measured_cell(found.mean, found.stderr, len(found.by_seed), "strong" if found.mean == best else "")


def _best(arms: Sequence[Arm], name: str) -> float | None:
    values = [metrics.direction(name) * arm.metrics[name].mean for arm in arms if name in arm.metrics]
    return max(values) * metrics.direction(name) if metrics.direction(name) and len(values) > 1 else None


def _arrow(name: str) -> str:
    return {1: " ↑", -1: " ↓", 0: ""}[metrics.direction(name)]


def differences(arms: Sequence[Arm]) -> Section | None:
    """Paired differences against LoRA, the base and whatever else was asked for, with their intervals."""
    others = sorted({o for arm in arms for o in arm.against}, key=lambda o: (o != "lora", o == "base", o))
    blocks: list[Any] = []
    for other in others:
        title = {"lora": "LoRA", "base": "the base model"}.get(other, other)
        for key, paired in ((None, "seed"), ("rows", "test row")):
            found = {arm.name: _paired(arm, other, key) for arm in arms}
            names = metrics.ordered({name for by_metric in found.values() for name in by_metric})
            rows = [[text_cell(a), *(_difference(d.get(n)) for n in names)] for a, d in found.items() if d]
            if rows:
                header = [("arm", False)] + [(metrics.title(name) + _arrow(name), True) for name in names]
                caption = f"Difference to {title}, paired by {paired}"
                shown = Table(f"against-{other}" + (f"-{key}" if key else ""), caption, header, rows)
                blocks.append(Folded(caption, [shown]) if key else shown)
    if not blocks:
        return None
    levels = {c.get("level") for a in arms for side in a.against.values() for c in (side or {}).values() if c}
    level = next((f"{100 * lv:g} %" for lv in levels if isinstance(lv, int | float)), "")
    said = f"Difference [{level + ' ' if level else ''}interval], n pairs. Bold where the interval leaves out zero."
    return Section("differences", "Paired differences", [Text(said), *blocks])


def _paired(arm: Arm, other: str, key: str | None) -> dict[str, Any]:
    found = {name: d for name, d in (arm.against.get(other) or {}).items() if metrics.whole(name) and d}
    return {name: d[key] for name, d in found.items() if d.get(key)} if key else found


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
    """Forgetting at equal validation loss, pair by pair."""
    rows = []
    for row in record.get("matched") or []:
        a, b, variant = pair(row)
        losses = [plain_cell(row.get(key)) for key in ("validation_loss", "kl_a", "kl_b")]
        named = [text_cell(f"{a} : {b}{variant}"), text_cell(str(row.get("path") or ""))]
        rows.append([*named, *losses, _ratio(row), plain_cell(row.get("seeds")), text_cell(row.get("reason"))])
    if not rows:
        return None
    header = [("a : b", False), ("along", False), ("validation loss", True), ("KL of a", True), ("KL of b", True)]
    header += [("ratio [interval]", True), ("seeds", True), ("not comparable because", False)]
    said = "KL where two arms have learned equally much, along their steps or along their rates, not after equally many"
    said += " steps. A ratio below 1: a forgets less. Bold where the interval leaves out 1."
    shown = Table("matched-table", "Forgetting at equal validation loss", header, rows)
    return Section("matched", "Matched learning", [Text(said), shown])


def _ratio(row: Mapping[str, Any]) -> Cell:
    ratio, (low, high) = row.get("ratio"), bounds(row)
    if ratio is None:
        return missing()
    if low is None or high is None:
        return Cell(f"{ratio:.3g}", ratio, dict(row))
    return Cell(f"{ratio:.3g} [{low:.3g}, {high:.3g}]", ratio, dict(row), "strong" if low > 1 or high < 1 else "")


def pair(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """The two arms of a matched comparison, with their ranks, and `` @VARIANT`` where that is not the only one."""
    variant = row.get("variant")
    ranks = row.get("r") or [None, None]
    a, b = (f"{row.get(k)}" + (f" r={r}" if r is not None else "") for k, r in zip(("a", "b"), ranks, strict=True))
    return a, b, "" if variant in (None, "base") else f" @{variant}"


def scores(material: Material) -> Section | None:
    """Base and tuned scores of each run beside one another, as its evaluation wrote them."""
    rows = []
    for run in material.runs:
        scored = run.results.get("comparison") or []
        for row, name in zip(scored, metrics.task_metrics(scored), strict=True):
            better = {True: 1, False: -1}.get(row.get("higher_is_better"), 0)
            gain = (row.get("difference") or 0) * better
            mark = "" if abs(row.get("difference") or 0) <= 2 * (row.get("difference_stderr") or 0) else "strong"
            rows.append(
                [
                    text_cell(run.name), text_cell(row.get("task")),
                    text_cell(name.partition(":")[2]), count_cell(row.get("n")),
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
    shown: Any = Table("scores-table", "Task scores", header, rows)
    if len(rows) > LONG:
        shown = Folded(f"All scores ({len(rows)})", [shown])
    return Section("scores", "Task scores of each run", [Text(said), shown])

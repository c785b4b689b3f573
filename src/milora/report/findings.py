"""The summary: one sentence for each finding, made from the numbers, silent about what was not measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from milora.report import metrics
from milora.report.arms import Arm
from milora.report.document import Findings, Section, Text, interval, measured, number
from milora.report.folders import Material
from milora.report.origins import failures
from milora.report.pareto import Front
from milora.report.results import bounds, check_name, pair

Item = tuple[str, str]
FEW = 6  # names in one sentence
FEW_PAIRS = 3  # under which an interval over seeds is no more than a range
CLEARLY = 2.0  # how many times chance a similarity must be to be called one


def section(material: Material, arms: Sequence[Arm], fronts: Sequence[Front]) -> Section:
    """All findings: what was run and checked, then learning and forgetting, then the change of the weights."""
    chosen = [arm for arm in arms if arm.chosen]
    items = [
        *_runs(material, arms), *_onto(material), *_checks(material.record), *_rates(material.selection),
        *_against(chosen, "lora", "LoRA"), *_best(chosen), *_matched(material.record), *_front(fronts),
        *_tasks(material), *_subspaces(chosen), *_predicted(chosen),
    ]  # fmt: skip
    description = str(material.record.get("description") or "")
    return Section("summary", "Summary", [*([Text(description)] if description else []), Findings(items)])


def _runs(material: Material, arms: Sequence[Arm]) -> list[Item]:
    failed = list(failures(material, arms))
    done = sum(1 for run in material.runs if run.name not in failed)
    items = [("plain", f"{_count(done, 'run')} in {_count(len(arms), 'arm')}; {_inputs(material)}")]
    if failed:
        items.append(("bad", f"{_count(len(failed), 'run')} failed and {_are(failed)} in no mean: {_names(failed)}."))
    single = [arm.name for arm in arms if len(arm.seeds) == 1]
    if single and len(single) == len(arms):
        items.append(("open", "There is one seed for each arm: how far another seed would land is not known."))
    elif single:
        items.append(("open", f"There is one seed alone, and so no spread, for {_names(single)}."))
    if material.record == {} and material.grid:
        items.append(
            ("open", "The comparison is not finished (no comparison.json): the arms are put together from its runs.")
        )
    if material.problems:
        items.append(
            ("bad", f"{_count(len(material.problems), 'file')} could not be read; they are listed at the end.")
        )
    return items


def _onto(material: Material) -> list[Item]:
    onto = ((material.record.get("settings") or {}).get("measure") or {}).get("onto")
    said = f"All is measured on {onto} with each run's change added to its weights, and beside {onto} itself."
    return [("plain", said)] if onto else []


def _inputs(material: Material) -> str:
    models = sorted(
        {str(run.recipe["model_name_or_path"]) for run in material.runs if run.recipe.get("model_name_or_path")}
    )
    data = sorted({str(run.recipe["dataset"]) for run in material.runs if run.recipe.get("dataset")})
    return f"base model {_names(models) or 'not recorded'}, trained on {_names(data) or 'data that were not recorded'}."


def _checks(record: Mapping[str, Any]) -> list[Item]:
    checks = record.get("checks") or []
    gates = [c for c in checks if c.get("gate")]
    items: list[Item] = []
    for kind, group in (("gate", gates), ("reported check", [c for c in checks if not c.get("gate")])):
        if not group:
            continue
        measured = [c for c in group if c.get("value") is not None and c.get("passed") is not None]
        failed = [check_name(c) for c in measured if not c["passed"]]
        passed = len(measured) - len(failed)
        text = f"{passed} of {_count(len(group), kind)} passed"
        text += f"; failed: {_names(failed)}" if failed else ""
        text += f"; {len(group) - len(measured)} not measured" if len(measured) < len(group) else ""
        sign = "bad" if failed and kind == "gate" else "open" if passed < len(group) else "good"
        items.append((sign, text + "."))
    return items


def _against(arms: Sequence[Arm], other: str, title: str) -> list[Item]:
    """Over seeds where there is an interval over them, else over test rows, else told as open."""
    items: list[Item] = []
    few: list[int] = []
    by_rows = False
    for name, more, less in (
        ("validation_loss", "learned less than", "learned more than"),
        ("kl", "forgot more than", "forgot less than"),
    ):
        told: dict[str, list[str]] = {more: [], less: [], "unclear": [], "alone": []}
        for arm in arms:
            found = (arm.against.get(other) or {}).get(name)
            if not found or not isinstance(found.get("difference"), int | float):
                continue
            shown, low, high = found, *bounds(found)
            rows = found.get("rows") or {}
            if low is None and None not in bounds(rows):
                shown, low, high = rows, *bounds(rows)
                by_rows = True
            elif low is not None:
                few.append(found.get("n") or FEW_PAIRS)
            n = f", n {shown['n']}{' rows' if shown is rows else ''}" if shown.get("n") is not None else ""
            verb = "alone" if low is None or high is None else more if low > 0 else less if high < 0 else "unclear"
            told[verb].append(f"{arm.name} ({interval(shown['difference'], low, high)}{n})")
        items += _told(told, title, metrics.title(name))
    if few and min(few) < FEW_PAIRS:
        items.append(("open", f"An interval over {_count(min(few), 'pair')} of runs says little about other seeds."))
    if by_rows:
        items.append(("open", "An interval over rows says how other rows would do, not other seeds."))
    return items


def _told(told: Mapping[str, Sequence[str]], title: str, metric: str) -> list[Item]:
    opened = {"unclear": f"No clear difference to {title} in {metric}",
              "alone": f"Difference to {title} in {metric}, one pair of runs and no interval"}  # fmt: skip
    items = [
        ("plain", f"{_list(arms)} {v} {title}, by {metric}.") for v, arms in told.items() if arms and v not in opened
    ]
    return items + [("open", f"{said}: {_list(told[v])}.") for v, said in opened.items() if told[v]]


def _best(arms: Sequence[Arm]) -> list[Item]:
    if len(arms) < 2 or any(arm.against for arm in arms):
        return []
    items = []
    for name in ("validation_loss", "kl"):
        there = [arm for arm in arms if name in arm.metrics]
        if len(there) > 1:
            best, worst = (f(there, key=lambda a: a.metrics[name].mean) for f in (min, max))
            said = [f"{a.name} ({measured(a.metrics[name].mean, a.metrics[name].stderr)})" for a in (best, worst)]
            items.append(
                (
                    "plain",
                    f"The lowest {metrics.title(name)} of {len(there)} arms: {said[0]}; the highest: {said[1]}.",
                )
            )
    return items


def _rates(selection: Mapping[str, Any]) -> list[Item]:
    edge = [label for label, found in selection.items() if isinstance(found, dict) and found.get("at_the_edge")]
    if not edge:
        return []
    return [
        (
            "open",
            f"The chosen learning rate is the smallest or largest that was tried for {_names(edge)}: "
            "a better one may lie beyond.",
        )
    ]


def _matched(record: Mapping[str, Any]) -> list[Item]:
    rows = [row for row in record.get("matched") or [] if row.get("comparable") and row.get("ratio")]
    rows = [row for row in rows if "lora" in (row.get("a"), row.get("b"))] or rows
    items = []
    for row in rows[:FEW]:
        low, high = bounds(row)
        a, b, variant = pair(row)
        among = f" [{low:.3g}, {high:.3g}]" if low and high else ""
        told = f" (ratio {row['ratio']:.3g}{among}, n {row.get('seeds')})"
        if not low or not high:
            text = f"forgetting of {a} beside {b}, one pair of runs and no interval"
        elif low <= 1 <= high:
            text = f"no clear difference in forgetting between {a} and {b}"
        else:
            text = f"{a} forgot {'less' if high < 1 else 'more'} than {b}"
        sign = "plain" if text.startswith(a) else "open"
        items.append((sign, f"At equal validation loss, along {row.get('path')}{variant}: {text}{told}."))
    return items


def _front(fronts: Sequence[Front]) -> list[Item]:
    return [("plain", f"On the front of {f.title} against forgetting: {_names(f.best)}.") for f in fronts if f.best]


def _tasks(material: Material) -> list[Item]:
    if len(material.runs) != 1:
        return []
    items = []
    rows = (material.runs[0].results.get("comparison") or [])[:FEW]
    for row, name in zip(rows, metrics.task_metrics(rows), strict=True):
        base, tuned, difference = row.get("base"), row.get("tuned"), row.get("difference")
        if not all(isinstance(v, int | float) for v in (base, tuned, difference)):
            continue
        error = row.get("difference_stderr")
        change = f"from {number(base)} to {number(tuned)} (difference {measured(difference, error)})"
        text = f"{metrics.title(name)} went {change}."
        unclear = error is not None and abs(difference) <= 2 * error
        better = {True: difference > 0, False: difference < 0}.get(row.get("higher_is_better"))
        items.append(("open" if unclear or better is None else "good" if better else "bad", text))
    return items


def _subspaces(arms: Sequence[Arm]) -> list[Item]:
    found: dict[str, list[str]] = {}
    for arm in arms:
        top, bottom, chance = (arm.metrics.get(f"phi_left_{part}") for part in ("top", "bottom", "random"))
        if top is None or bottom is None or chance is None or chance.mean <= 0:
            continue
        where = [f"the {n}" for n, m in (("top", top), ("bottom", bottom)) if m.mean >= CLEARLY * chance.mean]
        lies = f"in {' and '.join(where)}" if where else "in neither the top nor the bottom"
        values = f"{arm.name} ({top.mean:.2f}, {bottom.mean:.2f}, {chance.mean:.2f})"
        found.setdefault(lies, []).append(values)
    said = "subspace of W (φ left: top, bottom, random)"
    return [("plain", f"The change lies {lies} {said}: {_list(told)}.") for lies, told in found.items()]


def _predicted(arms: Sequence[Arm]) -> list[Item]:
    off = {
        arm.name: arm.predicted["all"] / arm.measured["all"] - 1
        for arm in arms
        if isinstance(arm.predicted.get("all"), int | float) and arm.measured.get("all")
    }
    if not off:
        return []
    told = [f"{name} {100 * value:+.0f} %".replace("-", "−") for name, value in off.items()]
    return [("plain", f"The size of the change beside LoRA's, as predicted before training, is off by {_list(told)}.")]


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _are(things: Sequence[Any]) -> str:
    return "is" if len(things) == 1 else "are"


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:FEW])
    return shown + (f" and {len(names) - FEW} more" if len(names) > FEW else "")


def _list(told: Sequence[str]) -> str:
    return told[0] if len(told) == 1 else f"{', '.join(told[:-1])} and {told[-1]}"

"""The summary: one sentence for each finding, made from the numbers, silent about what was not measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from milora.report import metrics
from milora.report.arms import Arm
from milora.report.document import Findings, Section, interval, measured, number
from milora.report.folders import Material
from milora.report.results import bounds

Item = tuple[str, str]
FEW = 6  # names in one sentence
CLEARLY = 2.0  # how many times chance a similarity must be to be called one


def section(material: Material, arms: Sequence[Arm]) -> Section:
    """All findings, the checks first."""
    items = [
        *_runs(material, arms), *_checks(material.record), *_against(arms, "lora", "LoRA"),
        *_against(arms, "base", "the base"), *_best(arms), *_front(material.record, arms), *_tasks(material),
        *_subspaces(arms), *_predicted(arms),
    ]  # fmt: skip
    return Section("summary", "Summary", [Findings(items)])


def _runs(material: Material, arms: Sequence[Arm]) -> list[Item]:
    failed = [run.name for run in material.runs if run.failed is not None]
    done = len(material.runs) - len(failed)
    items = [("plain", f"{_count(done, 'run')} in {_count(len(arms), 'arm')}; {_inputs(material)}")]
    if failed:
        items.append(("bad", f"{_count(len(failed), 'run')} failed and {_are(failed)} in no mean: {_names(failed)}."))
    single = [arm.name for arm in arms if len(arm.seeds) == 1]
    if single and len(single) == len(arms):
        items.append(("open", "There is one seed for each arm: how far another seed would land is not known."))
    elif single:
        items.append(("open", f"There is one seed alone, and so no spread, for {_names(single)}."))
    if material.record == {} and material.grid:
        items.append(("open", "The comparison is not finished (no comparison.json): the arms are put together from its runs."))
    if material.problems:
        items.append(("bad", f"{_count(len(material.problems), 'file')} could not be read; they are listed at the end."))
    return items


def _inputs(material: Material) -> str:
    models = sorted({str(run.recipe["model_name_or_path"]) for run in material.runs if run.recipe.get("model_name_or_path")})
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
        failed = [str(c.get("name")) for c in measured if not c["passed"]]
        passed = len(measured) - len(failed)
        text = f"{passed} of {_count(len(group), kind)} passed"
        text += f"; failed: {_names(failed)}" if failed else ""
        text += f"; {len(group) - len(measured)} not measured" if len(measured) < len(group) else ""
        sign = "bad" if failed and kind == "gate" else "open" if passed < len(group) else "good"
        items.append((sign, text + "."))
    return items


def _against(arms: Sequence[Arm], other: str, title: str) -> list[Item]:
    items = []
    for name, more, less in (("validation_loss", "learned less than", "learned more than"), ("kl", "forgot more than", "forgot less than")):
        clear: dict[str, list[str]] = {more: [], less: []}
        unclear = []
        for arm in arms:
            found = (arm.against.get(other) or {}).get(name)
            if not found or not isinstance(found.get("difference"), int | float):
                continue
            low, high = bounds(found)
            told = f"{arm.name} ({interval(found['difference'], low, high)})"
            if low is None or high is None or low <= 0 <= high:
                unclear.append(told)
            else:
                clear[more if low > 0 else less].append(told)
        title_of = metrics.title(name)
        items += [("plain", f"{_list(told)} {verb} {title}, by {title_of}.") for verb, told in clear.items() if told]
        if unclear:
            items.append(("open", f"No clear difference to {title} in {title_of}: {_list(unclear)}."))
    return items


def _best(arms: Sequence[Arm]) -> list[Item]:
    if len(arms) < 2 or any(arm.against for arm in arms):
        return []
    items = []
    for name in ("validation_loss", "kl"):
        there = [arm for arm in arms if name in arm.metrics]
        if len(there) > 1:
            best, worst = (f(there, key=lambda a: a.metrics[name].mean) for f in (min, max))
            said = [f"{a.name} ({measured(a.metrics[name].mean, a.metrics[name].stderr)})" for a in (best, worst)]
            items.append(("plain", f"Of {len(there)} arms the lowest {metrics.title(name)} is that of {said[0]}, the highest of {said[1]}."))
    return items


def _front(record: Mapping[str, Any], arms: Sequence[Arm]) -> list[Item]:
    rows = [row for row in record.get("pareto") or [] if isinstance(row, dict)]
    known = {arm.label: arm.name for arm in arms}
    items = []
    for score in dict.fromkeys(str(row.get("score_name")) for row in rows):
        here = [row for row in rows if str(row.get("score_name")) == score]
        front = list(dict.fromkeys(known.get(str(r["label"]), str(r["label"])) for r in here if r.get("on_front")))
        if front:
            items.append(("plain", f"On the front of {metrics.title(score)} against forgetting: {_names(front)}."))
    return items


def _tasks(material: Material) -> list[Item]:
    if len(material.runs) != 1:
        return []
    items = []
    for row in (material.runs[0].results.get("comparison") or [])[:FEW]:
        base, tuned, difference = row.get("base"), row.get("tuned"), row.get("difference")
        if not all(isinstance(v, int | float) for v in (base, tuned, difference)):
            continue
        error = row.get("difference_stderr")
        text = f"{metrics.title(metrics.task_metric(row))} went from {number(base)} to {number(tuned)} (difference {measured(difference, error)})."
        unclear = error is not None and abs(difference) <= 2 * error
        better = {True: difference > 0, False: difference < 0}.get(row.get("higher_is_better"))
        items.append(("open" if unclear or better is None else "good" if better else "bad", text))
    return items


def _subspaces(arms: Sequence[Arm]) -> list[Item]:
    items = []
    for arm in arms:
        phi = {part: arm.metrics.get(f"phi_left_{part}") for part in ("top", "bottom", "random")}
        top, bottom, chance = (m.mean if m else None for m in phi.values())
        if top is None or bottom is None or not chance:
            continue
        where = [f"the {part}" for part, value in (("top", top), ("bottom", bottom)) if value >= CLEARLY * chance]
        lies = f"lies in {' and '.join(where)} subspace of W" if where else "lies in neither the top nor the bottom subspace of W"
        values = f"φ left: top {number(top)}, bottom {number(bottom)}, random {number(chance)}"
        items.append(("plain", f"The change of {arm.name} {lies} ({values})."))
    return items


def _predicted(arms: Sequence[Arm]) -> list[Item]:
    off = {
        arm.name: arm.predicted["all"] / arm.measured["all"] - 1
        for arm in arms
        if isinstance(arm.predicted.get("all"), int | float) and arm.measured.get("all")
    }
    if not off:
        return []
    told = [f"{name} {100 * value:+.0f} %".replace("-", "−") for name, value in off.items()]
    return [("plain", f"The size of the change was predicted from the start to within: {_list(told)}.")]


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _are(things: Sequence[Any]) -> str:
    return "is" if len(things) == 1 else "are"


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:FEW])
    return shown + (f" and {len(names) - FEW} more" if len(names) > FEW else "")


def _list(told: Sequence[str]) -> str:
    return told[0] if len(told) == 1 else f"{', '.join(told[:-1])} and {told[-1]}"

"""What the models wrote: base and tuned answers to one prompt, side by side.

Of each task the same number is shown of answers that got better, got worse and stayed as good, in the order of the
rows: nothing is picked by hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from milora.report.arms import Arm
from milora.report.document import Output, Sample, Section, Text
from milora.report.folders import Material, Run, read_lines

EACH = 2  # shown of those that got better, of those that got worse, and of the others
LONGEST = 1500  # characters of a text
FREE = 6  # rows of samples.jsonl

Rows = dict[Any, dict[str, Any]]  # doc_id -> completion


def section(material: Material, arms: Sequence[Arm]) -> Section | None:
    """The samples of each task over the first run of each arm."""
    runs = {arm.name: arm.runs[0] for arm in arms if arm.runs}
    blocks: list[Any] = []
    for task in sorted({task for run in runs.values() for task in _tasks(run)}):
        tuned = {name: _read(run.path, f"{task}.tuned.jsonl", material) for name, run in runs.items()}
        base = _base(material, list(runs.values()), task)
        blocks += _of_task(task, base, {name: rows for name, rows in tuned.items() if rows})
    free = {name: read_lines(run.path / "samples.jsonl", material.problems) for name, run in runs.items()}
    blocks += _free({name: rows for name, rows in free.items() if rows})
    if not blocks:
        return None
    said = (
        f"Of each task up to {EACH} rows where the first arm did better than the base, {EACH} where it did worse and "
        f"{EACH} others, each time the first ones; prompts of no task are those of the first validation rows. Of "
        "an arm with several seeds the first seed is shown."
    )
    return Section("samples", "Samples, base and tuned side by side", [Text(said), *blocks])


def _tasks(run: Run) -> list[str]:
    return [p.name.removesuffix(".tuned.jsonl") for p in sorted((run.path / "eval").glob("*.tuned.jsonl"))]


def _base(material: Material, runs: Sequence[Run], task: str) -> Rows:
    for run in runs:
        if rows := _read(run.path, f"{task}.base.jsonl", material):
            return rows
    names = (f"{task}.base.jsonl", f"{task}.jsonl")
    found = (_read(base.path, name, material) for base in material.bases.values() for name in names)
    return next((rows for rows in found if rows), {})


def _read(folder: Path, name: str, material: Material) -> Rows:
    return {row.get("doc_id"): row for row in read_lines(folder / "eval" / name, material.problems)}


def _of_task(task: str, base: Rows, tuned: Mapping[str, Rows]) -> list[Sample]:
    if not tuned:
        return []
    first = next(iter(tuned.values()))
    kinds: dict[int, list[Any]] = {1: [], -1: [], 0: []}
    for doc_id, row in first.items():
        before, after = _score(base.get(doc_id, {})), _score(row)
        gain = 0 if before is None or after is None else after - before
        kinds[(gain > 0) - (gain < 0)].append(doc_id)
    chosen = [doc_id for kind in (1, -1, 0) for doc_id in kinds[kind][:EACH]]
    samples = []
    for doc_id in chosen:
        row = first[doc_id]
        sides = {"base": base.get(doc_id)} | {name: rows.get(doc_id) for name, rows in tuned.items()}
        outputs = [Output(name, cut(answer(r)), _verdict(r)) for name, r in sides.items() if r is not None]
        samples.append(Sample(f"{task}, row {doc_id}", cut(str(row.get("prompt") or "")), cut(_target(row)), outputs))
    return samples


def _free(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Sample]:
    """The answers of all arms to one prompt under it, each base's answer once."""
    rows: dict[str, dict[str, Mapping[str, Any]]] = {}
    for name, of_run in runs.items():
        for row in of_run[:FREE]:
            rows.setdefault(str(row.get("prompt") or ""), {})[name] = row
    samples = []
    for i, (prompt, answers) in enumerate(rows.items()):
        first = next(iter(answers.values()))
        sides = [("base", first.get("base")), *((name, row.get("tuned")) for name, row in answers.items())]
        outputs = [Output(side, cut(str(text))) for side, text in sides if text is not None]
        samples.append(Sample(f"prompt {i + 1}", cut(prompt), cut(str(first.get("target") or "")), outputs))
    return samples


def answer(row: Mapping[str, Any]) -> str:
    """What a model wrote, or the choice that it found likeliest."""
    if row.get("completion") is not None:
        return str(row["completion"])
    choices, found = row.get("continuations") or [], row.get("loglikelihoods") or []
    if len(choices) != len(found) or not all(isinstance(v, int | float) for v in found) or not found:
        return ""
    return str(choices[max(range(len(found)), key=found.__getitem__)]).strip()


def _target(row: Mapping[str, Any]) -> str:
    target, choices = row.get("target"), row.get("continuations") or []
    if isinstance(target, int) and 0 <= target < len(choices):
        return str(choices[target]).strip()
    return "" if target is None else str(target)


def _score(row: Mapping[str, Any]) -> float | None:
    return next((float(v) for v in (row.get("scores") or {}).values() if isinstance(v, int | float)), None)


def _verdict(row: Mapping[str, Any]) -> str:
    score = _score(row)
    return "" if score is None else {1.0: "right", 0.0: "wrong"}.get(score, f"score {score:.3g}")


def cut(text: str) -> str:
    """The text, or its beginning and how much was left out."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} … ({len(text) - LONGEST:,} more characters)"

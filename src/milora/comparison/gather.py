"""What the runs of one arm have measured, read from their folders: metric -> seed -> value.

Metrics are named validation_loss, kl, forgetting, TASK:METRIC, and the numbers of the analysis' summary (amplification,
phi_left_top, ...). `:TYPE` behind one of the latter is that of a module type, `@STEP` behind one of the former that of
a measured step.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from milora.comparison.folder import FAILED, MEASURED
from milora.comparison.grid import Measure, settings_of
from milora.comparison.plan import Job, rate_name
from milora.comparison.selection import resolved_rate
from milora.runs import RunFolder
from milora.runs.folder import read_json

# metric -> seed -> value; metric -> seed -> row -> value
BySeed = dict[str, dict[int, float]]
ByRow = dict[str, dict[int, dict[str, float]]]


@dataclass
class ArmResult:
    """One arm at one rank and rate: its runs and what they measured.

    Attributes:
        cell: the name of arm, variant and rank.
        by_seed: metric -> seed -> value, of the seeds that did not fail.
        by_row: metric -> seed -> test row -> value.
        steps: seed -> measured steps in their order.
        floors: seed -> entropy of the base on the text of forgetting.
        norms: seed -> module -> ||dW|| at the end.
        predicted: ||dW|| of the first steps over LoRA's, both at one rate.
        higher_is_better: of each task metric.
    """

    cell: str
    label: str
    variant: str
    method: str
    r: int | None
    learning_rate: float | None
    chosen: bool
    seeds: list[int] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    trainable_parameters: int | None = None
    by_seed: BySeed = field(default_factory=dict)
    by_row: ByRow = field(default_factory=dict)
    steps: dict[int, list[int]] = field(default_factory=dict)
    floors: dict[int, float] = field(default_factory=dict)
    norms: dict[int, dict[str, float]] = field(default_factory=dict)
    predicted: dict[str, Any] | None = None
    higher_is_better: dict[str, bool] = field(default_factory=dict)


@dataclass
class BaseResult:
    """What the base model measured, by seed and by test row as an arm does."""

    by_seed: BySeed = field(default_factory=dict)
    by_row: ByRow = field(default_factory=dict)


def gather(jobs: Sequence[Job], chosen: Mapping[str, str | None], measure: Measure) -> list[ArmResult]:
    """The results of all runs, one entry for each arm, rank, variant and rate, in the order of the jobs.

    A run that was not measured as `measure` asks counts as failed: its process may have been killed on the way.
    """
    found: dict[tuple[str, str], ArmResult] = {}
    for job in jobs:
        key = job.cell.key, rate_name(job.learning_rate)
        if key not in found:
            is_chosen = len(job.cell.rates) == 1 or chosen.get(job.cell.key) == key[1]
            found[key] = ArmResult(
                job.cell.key, job.cell.arm.label, job.cell.variant.label, job.cell.arm.method, job.cell.r,
                None, is_chosen,
            )  # fmt: skip
        _add(found[key], job, settings_of(measure, whole=job.measured))
    return list(found.values())


def gather_base(folder: Path, arms: Sequence[ArmResult], variant: str) -> BaseResult:
    """The base model of a variant; its KL to itself is zero and its forgetting the floor that its runs measured."""
    base = BaseResult()
    for seed, found in read_json(folder / MEASURED).get("by_seed", {}).items():
        base.by_seed.setdefault("validation_loss", {})[int(seed)] = found["validation_loss"]
        base.by_row.setdefault("validation_loss", {})[int(seed)] = _rows(found["rows"])
    seeds = {seed for arm in arms if arm.variant == variant for seed in arm.seeds}
    for arm in arms:
        if arm.variant == variant:
            for seed, floor in arm.floors.items():
                base.by_seed.setdefault("forgetting", {})[seed] = floor
                base.by_seed.setdefault("kl", {})[seed] = 0.0
    results = read_json(folder / "eval" / "results.json")
    for metric, score in _scores(results.get("scores", [])):
        base.by_seed[metric] = {seed: score["value"] for seed in seeds}
        if rows := _answers(folder / "eval" / f"{score['task']}.jsonl", score):
            base.by_row[metric] = {seed: rows for seed in seeds}
    return base


def _add(arm: ArmResult, job: Job, settings: Mapping[str, Any]) -> None:
    run = RunFolder(job.recipe.output_dir)
    arm.names[str(job.seed)] = job.place
    arm.learning_rate = arm.learning_rate or resolved_rate(job)
    failure = read_json(run.path / FAILED)
    record = read_json(run.path / MEASURED)
    other = bool(record) and record["settings"] != settings
    if failure or not record or other:
        arm.failed.append(job.seed)
        why = "the run was not measured as the grid asks" if other else "the run was not finished"
        arm.errors[str(job.seed)] = failure.get("error", why)
        return
    arm.seeds.append(job.seed)
    arm.trainable_parameters = run.provenance().get("trainable_parameters", arm.trainable_parameters)
    last = record["steps"][-1]
    arm.steps[job.seed] = [row["step"] for row in record["steps"]]
    for row in record["steps"]:
        _note(arm, job.seed, _of_step(row), "" if row is last else f"@{row['step']}")
    _note(arm, job.seed, _of_step(last), f"@{last['step']}")
    if last["forgetting"]:
        arm.floors[job.seed] = last["forgetting"]["floor"]
    analysis = read_json(run.analysis_file)
    _note(arm, job.seed, _of_analysis(analysis.get("summary", {})))
    if analysis:
        arm.norms[job.seed] = {m["module"]: m["norm_dW"] for m in analysis["modules"] if m["norm_dW"] is not None}
    arm.predicted = arm.predicted or record.get("predicted")
    if record.get("validation_rows"):
        arm.by_row.setdefault("validation_loss", {})[job.seed] = _rows(record["validation_rows"])
    for metric, score in _scores(read_json(run.eval_results_file).get("tuned", {}).get("scores", [])):
        _note(arm, job.seed, [(metric, score["value"])])
        arm.higher_is_better[metric] = bool(score.get("higher_is_better", True))
        if rows := _answers(run.eval / f"{score['task']}.tuned.jsonl", score):
            arm.by_row.setdefault(metric, {})[job.seed] = rows


def _note(arm: ArmResult, seed: int, values: Any, suffix: str = "") -> None:
    for metric, value in values:
        if value is not None and math.isfinite(value):
            arm.by_seed.setdefault(metric + suffix, {})[seed] = float(value)


def _of_step(row: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    yield "validation_loss", row["validation_loss"]
    moved = row["forgetting"] or {}
    yield "kl", moved.get("kl")
    yield "forgetting", moved.get("cross_entropy")


def _of_analysis(summary: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    yield from _flat(summary)
    for type_, own in (summary.get("by_type") or {}).items():
        yield from ((f"{metric}:{type_}", value) for metric, value in _flat(own))


def _flat(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float | None]]:
    """{"phi": {"left": {"top": 1.0}}} as phi_left_top; the groups by type and layer are left out."""
    for name, value in record.items():
        if isinstance(value, Mapping):
            if name not in ("by_type", "by_layer"):
                yield from _flat(value, f"{prefix}{name}_")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{name}", float(value)


def _rows(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean loss of each validation row."""
    return {str(i): row["loss"] / row["tokens"] for i, row in enumerate(rows) if row["tokens"]}


def _scores(scores: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each score by its name: TASK:METRIC, with the filter where the metric has several."""
    keys = [(score["task"], score["metric"]) for score in scores]
    for score, key in zip(scores, keys, strict=True):
        several = keys.count(key) > 1
        yield f"{key[0]}:{key[1]}" + (f",{score['filter']}" if several else ""), score


def _answers(file: Path, score: Mapping[str, Any]) -> dict[str, float]:
    """The score of each row of a task; none for a group, or for a metric that has no score by row."""
    if not file.is_file():
        return {}
    name = f"{score['metric']},{score['filter']}"
    found: dict[str, float] = {}
    for line in file.read_text(encoding="utf-8").split("\n"):
        if line:
            record = json.loads(line)
            value = record["scores"].get(name)
            if isinstance(value, int | float):
                found[str(record["doc_id"])] = float(value)
    return found

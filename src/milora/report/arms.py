"""The arms of a report: runs that differ in nothing but their seed, with means over the seeds.

With n seeds and values x_i:   mean = sum x_i / n,   stderr = sqrt(sum (x_i - mean)^2 / (n - 1) / n),   none for n = 1

A comparison folder brings its arms, with paired differences and their intervals; other runs are put together here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from milora.report import metrics
from milora.report.document import rate
from milora.report.folders import Material, Run


@dataclass(frozen=True)
class Measured:
    """A mean over seeds; ``stderr`` is None where there is one seed."""

    mean: float
    stderr: float | None = None
    by_seed: dict[str, float] = field(default_factory=dict)


@dataclass
class Arm:
    """Runs of one method at one rank and one learning rate.

    Attributes:
        variant: of the base model, "base" where there is one alone.
        chosen: whether its learning rate is the one that was chosen for its method.
        errors, places: seed -> why its run failed, and the folder of its run.
        name: what tables and pictures call it; no two arms share it.
        runs: its runs that are there and did not fail.
        against: "lora" or "base" -> metric -> {"difference", "interval", "n", "level"}.
        beside: "lora" -> {"footprint": ratio or None, "gain_ratio": {metric: ratio}}.
        predicted, measured: the ratio of ||dW|| to LoRA's, {"by_type": {type: ratio}, "all": ratio}.
    """

    label: str
    method: str
    r: int | None
    learning_rate: float | None
    seeds: list[int]
    failed: list[int]
    trainable: int | None
    metrics: dict[str, Measured]
    against: dict[str, dict[str, Any]] = field(default_factory=dict)
    beside: dict[str, dict[str, Any]] = field(default_factory=dict)
    predicted: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    variant: str = "base"
    chosen: bool = True
    errors: dict[str, str] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    name: str = ""

    def shown(self) -> dict[str, Measured]:
        """The metrics of the end of a run and of all weights, in the order of reading."""
        return {name: self.metrics[name] for name in metrics.ordered(self.metrics) if metrics.whole(name)}


def arms_of(material: Material) -> list[Arm]:
    """The arms of a comparison, or of runs that differ in nothing but their seed; the best known names first."""
    groups = _grouped(material.runs)
    rows = [row for row in material.record.get("arms") or [] if isinstance(row, dict)]
    arms = [_from_record(row, material.runs) for row in rows] if rows else [_from_runs(runs) for runs in groups]
    _name(arms)
    return arms


def mean_of(values: Mapping[str, float]) -> Measured:
    """Mean and standard error over the values by seed."""
    x = list(values.values())
    mean = math.fsum(x) / len(x)
    spread = math.fsum((v - mean) ** 2 for v in x)
    return Measured(mean, math.sqrt(spread / (len(x) - 1) / len(x)) if len(x) > 1 else None, dict(values))


# Keys of a recipe in which runs of one arm may differ: the seed, and what shapes no weight.
FREE = {"seed", "name", "description", "sources", "output_dir", "report_to", "logging_steps", "save_total_limit",
        "eval_tasks", "eval_limit", "eval_batch_size", "eval_data_dir", "forgetting_text", "forgetting_max_tokens",
        "forgetting_block"}  # fmt: skip


def _grouped(runs: Iterable[Run]) -> list[list[Run]]:
    """Runs of one recipe but for the seed; a second run of a seed is an arm of its own."""
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        recipe = json.dumps({k: v for k, v in run.recipe.items() if k not in FREE}, sort_keys=True, default=str)
        key = (run.label, run.variant, run.r, run.learning_rate, recipe)
        nth = 0
        while any(other.seed == run.seed for other in groups.get((*key, nth), [])):
            nth += 1
        groups.setdefault((*key, nth), []).append(run)
    return list(groups.values())


def _from_runs(runs: list[Run]) -> Arm:
    done = [run for run in runs if run.failed is None]
    values: dict[str, dict[str, float]] = {}
    for run in done:
        for name, value in metrics.of_run(run).items():
            values.setdefault(name, {})[str(run.seed)] = value
    return Arm(
        label=runs[0].label, method=runs[0].method, r=runs[0].r, learning_rate=runs[0].learning_rate,
        seeds=_seeds(done), failed=_seeds(r for r in runs if r.failed is not None),
        trainable=next((t for r in done if (t := r.provenance.get("trainable_parameters")) is not None), None),
        metrics={name: mean_of(by_seed) for name, by_seed in values.items()},
        runs=done, variant=runs[0].variant,
    )  # fmt: skip


def _from_record(row: Mapping[str, Any], runs: list[Run]) -> Arm:
    measured = _measured(row.get("metrics") or {})
    label = str(row.get("label") or row.get("method") or "unknown")
    return Arm(
        label=label, method=str(row.get("method") or label), r=row.get("r"), learning_rate=row.get("learning_rate"),
        seeds=list(row.get("seeds") or []), failed=list(row.get("failed") or []),
        trainable=row.get("trainable_parameters"), metrics=measured, against=dict(row.get("against") or {}),
        beside=dict(row.get("beside") or {}), predicted=dict(row.get("predicted") or {}),
        measured=dict(row.get("measured") or {}),
        runs=_runs_of(row, label, runs), variant=str(row.get("variant") or "base"),
        chosen=row.get("chosen") is not False, errors=dict(row.get("errors") or {}), places=dict(row.get("runs") or {}),
    )  # fmt: skip


def _measured(record: Mapping[str, Any]) -> dict[str, Measured]:
    return {
        name: Measured(float(m["mean"]), m.get("stderr"), dict(m.get("by_seed") or {}))
        for name, m in record.items()
        if isinstance(m, dict) and isinstance(m.get("mean"), int | float)
    }


def bases_of(material: Material) -> dict[str, dict[str, Measured]]:
    """Variant -> metric -> what the base model measured; a variant without measurements is absent."""
    recorded = material.record.get("base") or {}
    found = {v: _measured(b.get("metrics") or {}) for v, b in recorded.items() if isinstance(b, dict)}
    for variant in [*material.bases, "base"]:
        own = [run for run in material.runs if run.variant == variant]
        # The arms of a comparison have what its record says of them, and so has its base.
        scores = {} if material.record.get("arms") else metrics.of_base_retained(own)
        scores |= metrics.of_base(material.bases.get(variant), own)
        found[variant] = {name: Measured(v) for name, v in scores.items()} | found.get(variant, {})
    return {variant: measured for variant, measured in found.items() if measured}


def _runs_of(row: Mapping[str, Any], label: str, runs: list[Run]) -> list[Run]:
    """The runs of an arm that did not fail: those that it names, else those with its label, rank and rate."""
    done = [run for run in runs if run.failed is None]
    if named := row.get("runs"):
        names = {Path(str(place)).name for seed, place in named.items() if seed not in (row.get("errors") or {})}
        return [run for run in done if run.name in names]
    rate = row.get("learning_rate")
    return [
        run for run in done
        if run.label == label and run.r == row.get("r") and run.variant == str(row.get("variant") or "base")
        and rate is not None and run.learning_rate is not None and math.isclose(run.learning_rate, rate, rel_tol=1e-5)
    ]  # fmt: skip


def _seeds(runs: Iterable[Run]) -> list[int]:
    return sorted({run.seed for run in runs if run.seed is not None})


def _name(arms: list[Arm]) -> None:
    """Name each arm by its label, its variant, and by rank and rate as far as they tell arms of one label apart."""
    for arm in arms:
        same = [other for other in arms if (other.label, other.variant) == (arm.label, arm.variant)]
        parts = [arm.label if arm.variant == "base" else f"{arm.label}@{arm.variant}"]
        if len({other.r for other in same}) > 1:
            parts.append(f"r={arm.r}")
        if len({other.learning_rate for other in same if other.r == arm.r}) > 1:
            parts.append(f"lr={rate(arm.learning_rate)}")
        arm.name = " ".join(parts)
    names = [arm.name for arm in arms]
    for i, arm in enumerate(arms):
        if names.count(arm.name) > 1:
            arm.name = f"{arm.name} ({names[: i + 1].count(arm.name)})"

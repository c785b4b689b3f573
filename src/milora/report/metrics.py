"""The names of the measurements: what a person reads, which way is better, and where a run folder holds them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from milora.report.folders import Run

TITLES = {
    "validation_loss": "validation loss",
    "kl": "forgetting (KL to base)",
    "forgetting": "forgetting (cross-entropy)",
    "relative": "‖ΔW‖ / ‖W‖",
    "norm_dW": "‖ΔW‖",
    "amplification": "amplification factor",
    "intruders": "intruder dimensions",
}
MATRICES = "matrices"  # how many a mean is over
LEARNING = ("validation_loss", "kl", "forgetting")  # these stand first
LOWER_IS_BETTER = set(LEARNING)
NEITHER = {
    MATRICES,
    "amplification",
    "relative",
    "norm_dW",
    "intruders",
}  # they describe, they do not rank
# Endings of the harness's metrics that fall as a model gets better.
FALLING = ("perplexity", "loss", "bits_per_byte", "nll", "brier_score", "ter", "wer", "cer", "mse", "mae")


def title(name: str) -> str:
    """``phi_left_bottom`` becomes ``φ left, bottom``; a task's metric stays as it is."""
    if name in TITLES:
        return TITLES[name]
    if name.startswith("phi_"):
        return "φ " + ", ".join(name.split("_")[1:])
    task, _, metric = name.partition(":")
    return f"{task}: {metric}" if metric else name.replace("_", " ")


def direction(name: str) -> int:
    """1 where higher is better, -1 where lower is, 0 where neither is."""
    if name in LOWER_IS_BETTER or name.rpartition(":")[2].split(",")[0].endswith(FALLING):
        return -1
    return 0 if name in NEITHER or name.startswith("phi_") else 1


def describes_change(name: str) -> bool:
    """Whether a metric says where a change of weights lies, rather than how good a model is."""
    return direction(name) == 0


def whole(name: str) -> bool:
    """Whether a metric is of the end of a run and of all its weights: no ``@STEP``, and no ``:TYPE`` of a change's."""
    own = name.partition(":")[0]
    return "@" not in name and name != MATRICES and not (":" in name and (own in NEITHER or own.startswith("phi_")))


def at_steps(names: Iterable[str]) -> dict[str, list[tuple[int, str]]]:
    """Metric -> (step, name) of those that were measured at a step, ``METRIC@STEP``."""
    found: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        metric, at, step = name.rpartition("@")
        if at and step.isdigit():
            found.setdefault(metric, []).append((int(step), name))
    return {metric: sorted(steps) for metric, steps in found.items()}


def ordered(names: Iterable[str]) -> list[str]:
    """The headline first, then the tasks, then what describes the change."""

    def place(name: str) -> tuple[int, int, str]:
        if name in LEARNING:
            return 0, LEARNING.index(name), name
        return (2 if describes_change(name) else 1), 0, name

    return sorted(set(names), key=place)


def of_run(run: Run) -> dict[str, float]:
    """What a run folder holds as numbers; what was not measured is absent."""
    found: dict[str, Any] = {"validation_loss": validation_loss(run)}
    found["kl"], found["forgetting"] = run.forgetting.get("kl"), run.forgetting.get("cross_entropy")
    summary = run.analysis.get("summary") or {}
    found |= {name: summary.get(name) for name in ("amplification", "relative")}
    for side, parts in (summary.get("phi") or {}).items():
        found |= {f"phi_{side}_{part}": value for part, value in (parts or {}).items()}
    rows = run.results.get("comparison") or []
    for row, name in zip(rows, task_metrics(rows), strict=True):
        found[name] = row.get("tuned")
    retention = retention_rows(run)
    return {**(numbers(retained(retention[-1])) if retention else {}), **numbers(found)}


def retention_rows(run: Run) -> list[Mapping[str, Any]]:
    """The rows of ``retention.json`` by step: the base model at step 0, then each checkpoint, then the end."""
    return sorted((row for row in run.retention.get("rows") or [] if "step" in row), key=lambda row: row["step"])


def retained(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row of ``retention.json`` measured, by name; None of what did not become a number."""
    found: dict[str, Any] = {"kl": (row.get("forgetting") or {}).get("kl")} if "forgetting" in row else {}
    found |= {f"loss, {name}": value for name, value in (row.get("losses") or {}).items()}
    found |= {f"accuracy, {name}": value for name, value in (row.get("accuracies") or {}).items()}
    scores = row.get("scores") or []
    return found | {name: score.get("value") for name, score in zip(task_metrics(scores), scores, strict=True)}


def retained_errors(row: Mapping[str, Any]) -> dict[str, float]:
    """The standard errors of a row's scores over its evaluation runs, by name."""
    scores = row.get("scores") or []
    return numbers({name: s.get("stderr") for name, s in zip(task_metrics(scores), scores, strict=True)})


def numbers(found: Mapping[str, Any]) -> dict[str, float]:
    """Those that are numbers."""
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}


def of_base(run: Run | None, runs: Iterable[Run] = ()) -> dict[str, float]:
    """The base model's scores, from its own folder or from what the runs measured beside themselves."""
    scores: dict[str, float] = {}
    for source in [run, *runs]:
        results = source.results if source else {}
        rows = results.get("scores") or (results.get("base") or {}).get("scores") or []
        for row, name in zip(rows, task_metrics(rows), strict=True):
            if isinstance(row.get("value"), int | float):
                scores.setdefault(name, float(row["value"]))
    return scores


def of_base_retained(runs: Iterable[Run]) -> dict[str, float]:
    """What the runs' ``retention.json`` say of the base model, at step 0; its KL to itself is no measurement."""
    starts = [rows[0] for run in runs if (rows := retention_rows(run)) and rows[0]["step"] == 0]
    return {name: value for row in starts for name, value in numbers(retained(row)).items() if name != "kl"}


def task_metrics(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """``task:metric`` of each score, with the filter where a metric has several."""
    names = [f"{row.get('task')}:{row.get('metric')}" for row in rows]
    return [n if names.count(n) == 1 else f"{n},{row.get('filter')}" for n, row in zip(names, rows, strict=True)]


def validation_loss(run: Run) -> float | None:
    """The loss of the weights that were kept: the last one, or the best where the best were loaded at the end."""
    losses = [r["eval_loss"] for r in run.metrics if isinstance(r.get("eval_loss"), int | float)]
    if not losses:
        return None
    return min(losses) if run.recipe.get("load_best_model_at_end") else losses[-1]

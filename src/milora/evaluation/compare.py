"""Base and tuned model side by side, on the same rows, with the error of their difference.

Both models answer the same rows, so the difference is paired: with d_i = tuned_i - base_i over n rows,

    difference = mean(d),    standard error = sd(d) / sqrt(n),    sd with n - 1

which is smaller than what the two standard errors give when they are taken as independent. A group's
difference is the weighted sum of its tasks' differences, its error sqrt(sum_t (w_t se_t)^2).
"""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from milora.errors import MiloraError
from milora.evaluation.evaluate import evaluate, task_names
from milora.evaluation.records import Record
from milora.models.atomic import write_text

SIDES = ("base", "tuned")


def evaluate_base_and_tuned(
    model: Any,
    tokenizer: Any,
    tasks: str | Sequence[str],
    *,
    base_model: Any = None,
    base_results: Mapping[str, Any] | None = None,
    run_folder: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Evaluate a tuned model and its base, and compare them row by row.

    Args:
        model: the tuned model. With an adapter, the base is this model with its adapters disabled.
        tokenizer: of both.
        tasks: names of tasks or groups.
        base_model: the base of a full fine-tune, which has no adapter to disable.
        base_results: an earlier ``evaluate`` of the base with the same settings, instead of running it.
        run_folder: where to write ``eval/<task>.base.jsonl``, ``eval/<task>.tuned.jsonl`` (completions)
            and ``eval/results.json`` (everything else), beside the results of other tasks.
        overwrite: replace results of the same tasks that lie there.
        settings: of :func:`milora.evaluation.evaluate`.

    Returns:
        comparison: rows task, metric, filter, base, base_stderr, tuned, tuned_stderr, difference,
            difference_stderr (None when a metric has no score per row), n, version.
        base, tuned: what ``evaluate`` returns.

    Raises:
        MiloraError: no way to the base model, results of a task that lie there already, or what ``evaluate`` raises.
    """
    if base_model is None and base_results is None and not hasattr(model, "disable_adapter"):
        raise MiloraError("evaluation: the model has no adapter to disable; pass its base as base_model")
    if run_folder is not None and not overwrite and measured_tasks(run_folder):
        where = {name: settings.get(name) for name in ("data_dir", "include_path")}
        refuse_measured(run_folder, task_names(tasks, **where))
    if base_results is None:
        base_context = nullcontext() if base_model is not None else model.disable_adapter()
        with base_context:
            base_results = evaluate(model if base_model is None else base_model, tokenizer, tasks, **settings)
    tuned = evaluate(model, tokenizer, tasks, **settings)
    result = {"comparison": compare(base_results, tuned), "base": dict(base_results), "tuned": tuned}
    if run_folder is not None:
        write_results(Path(run_folder) / "eval", result)
    return result


def compare(base: Mapping[str, Any], tuned: Mapping[str, Any]) -> list[Record]:
    """Rows of base, tuned and paired difference from two results of ``evaluate``.

    Raises:
        MiloraError: the two were not run on the same tasks and prompts.
    """
    scores = {_key(row): row for row in base["scores"]}
    rows: list[Record] = []
    for row in tuned["scores"]:
        if (other := scores.get(_key(row))) is None or other["version"] != row["version"]:
            raise MiloraError(f"evaluation: base and tuned differ in task {row['task']} or its version")
        if "weights" in row:
            stderr = _group_stderr(row, rows)
        else:
            stderr = _paired_stderr(base["completions"], tuned["completions"], row)
        rows.append(
            {
                **{name: row[name] for name in ("task", "metric", "filter")},
                "base": other["value"],
                "base_stderr": other["stderr"],
                "tuned": row["value"],
                "tuned_stderr": row["stderr"],
                "difference": row["value"] - other["value"],
                "difference_stderr": stderr,
                "n": row["n"],
                "version": row["version"],
                "higher_is_better": row["higher_is_better"],
            }
        )
    return rows


def _key(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["task"], row["metric"], row["filter"]


def _paired_stderr(base: Mapping[str, Any], tuned: Mapping[str, Any], row: Record) -> float | None:
    task, name = row["task"], f"{row['metric']},{row['filter']}"
    pairs = list(zip(base[task], tuned[task], strict=False))
    asked = [(b["doc_id"], b["prompt_hash"]) for b in base[task]]
    if asked != [(t["doc_id"], t["prompt_hash"]) for t in tuned[task]]:
        raise MiloraError(f"evaluation: base and tuned of {task} were not run on the same rows and prompts")
    scores = [(b["scores"].get(name), t["scores"].get(name)) for b, t in pairs]
    # A corpus metric (perplexity) keeps parts, not a score, for each row.
    if len(scores) < 2 or not all(isinstance(s, int | float) for pair in scores for s in pair):
        return None
    d = [t - b for b, t in scores]
    mean = sum(d) / len(d)
    return math.sqrt(sum((x - mean) ** 2 for x in d) / (len(d) - 1) / len(d))


def _group_stderr(group: Record, rows: list[Record]) -> float | None:
    key = (group["metric"], group["filter"])
    errors = {r["task"]: r["difference_stderr"] for r in rows if (r["metric"], r["filter"]) == key}
    parts = [(weight, errors[task]) for task, weight in group["weights"].items()]
    if any(error is None for _, error in parts):
        return None
    return math.sqrt(sum((weight * error) ** 2 for weight, error in parts))


def measured_tasks(run_folder: str | os.PathLike[str]) -> set[str]:
    """The tasks and groups whose results lie in ``eval/`` of a run folder."""
    return {row["task"] for row in _read(Path(run_folder) / "eval" / "results.json").get("comparison", [])}


def refuse_measured(run_folder: str | os.PathLike[str], names: Iterable[str]) -> None:
    """Raise a MiloraError if results of one of these tasks or groups lie in ``eval/`` of a run folder."""
    if found := sorted(measured_tasks(run_folder) & set(names)):
        file = Path(run_folder) / "eval" / "results.json"
        raise MiloraError(f"evaluation: {file} holds results of {', '.join(found)}; set overwrite to replace them")


def write_results(folder: str | os.PathLike[str], result: Mapping[str, Any]) -> Path:
    """Write a result into a folder, each file atomically; results of other tasks that lie there stay.

    Args:
        folder: takes ``<task>.base.jsonl`` and ``<task>.tuned.jsonl``, or ``<task>.jsonl`` of a single model.
        result: of ``evaluate_base_and_tuned`` or ``evaluate``.

    Returns:
        The path of ``results.json``, which is written last, so that it stands only beside its completions. Its
        settings are by task.
    """
    target = Path(folder) / "results.json"
    sides = {f".{side}": result[side] for side in SIDES} if "comparison" in result else {"": result}
    for side, part in sides.items():
        for task, records in part["completions"].items():
            lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
            write_text(target.parent / f"{task}{side}.jsonl", lines)
    summary = _merged(_read(target), result) if "comparison" in result else _summary(result)
    write_text(target, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    return target


def _summary(result: Mapping[str, Any]) -> dict[str, Any]:
    by_task = {"settings": {task: result["settings"] for task in result["completions"]}} if "settings" in result else {}
    return {name: part for name, part in result.items() if name != "completions"} | by_task


def _merged(old: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """The results of a folder after new ones: rows of other tasks stay, as do groups without a measured task."""
    measured = {row["task"] for row in result["comparison"]}
    gone = {row["task"] for row in old.get("base", {}).get("scores", []) if measured & set(row.get("weights", ()))}
    gone |= measured

    def rows(before: list[Record], now: list[Record]) -> list[Record]:
        return [row for row in before if row["task"] not in gone] + list(now)

    merged: dict[str, Any] = {"comparison": rows(old.get("comparison", []), result["comparison"])}
    for side in SIDES:
        before, now = old.get(side, {}), _summary(result[side])
        merged[side] = {name: {**before.get(name, {}), **part} for name, part in now.items() if name != "scores"}
        merged[side] |= {"scores": rows(before.get("scores", []), now["scores"])}
    return merged


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

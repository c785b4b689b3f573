"""Base and tuned model side by side, on the same rows, with the error of their difference.

Both models answer the same rows, so the difference is paired: with d_i = tuned_i - base_i over n rows,

    difference = mean(d),    standard error = sd(d) / sqrt(n),    sd with n - 1

which is smaller than what the two standard errors give when they are taken as independent. A group's
difference is the weighted sum of its tasks' differences, its error sqrt(sum_t (w_t se_t)^2).
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from milora.errors import MiloraError
from milora.evaluation.evaluate import evaluate
from milora.evaluation.records import Record
from milora.models.atomic import write_text


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
            and ``eval/results.json`` (everything else).
        overwrite: replace results that lie there.
        settings: of :func:`milora.evaluation.evaluate`.

    Returns:
        comparison: rows task, metric, filter, base, base_stderr, tuned, tuned_stderr, difference,
            difference_stderr (None when a metric has no score per row), n, version.
        base, tuned: what ``evaluate`` returns.

    Raises:
        MiloraError: no way to the base model, results that lie there already, or what ``evaluate`` raises.
    """
    if base_model is None and base_results is None and not hasattr(model, "disable_adapter"):
        raise MiloraError("evaluation: the model has no adapter to disable; pass its base as base_model")
    if run_folder is not None and not overwrite and (results := _results_file(run_folder)).exists():
        raise MiloraError(f"evaluation: {results} exists; set overwrite to replace it")
    if base_results is None:
        base_context = nullcontext() if base_model is not None else model.disable_adapter()
        with base_context:
            base_results = evaluate(model if base_model is None else base_model, tokenizer, tasks, **settings)
    tuned = evaluate(model, tokenizer, tasks, **settings)
    result = {"comparison": compare(base_results, tuned), "base": dict(base_results), "tuned": tuned}
    if run_folder is not None:
        write_results(run_folder, result)
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


def _results_file(run_folder: str | os.PathLike[str]) -> Path:
    return Path(run_folder) / "eval" / "results.json"


def write_results(run_folder: str | os.PathLike[str], result: Mapping[str, Any]) -> Path:
    """Write a result of ``evaluate_base_and_tuned`` into ``eval/`` of a run folder, each file atomically.

    Returns:
        The path of ``results.json``, which is written last, so that it stands only beside its completions.
    """
    target = _results_file(run_folder)
    for side in ("base", "tuned"):
        for task, records in result[side]["completions"].items():
            lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
            write_text(target.parent / f"{task}.{side}.jsonl", lines)
    summary = {"comparison": result["comparison"]}
    for side in ("base", "tuned"):
        summary[side] = {name: part for name, part in result[side].items() if name != "completions"}
    write_text(target, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    return target

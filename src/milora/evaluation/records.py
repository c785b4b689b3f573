"""From the harness's results to plain rows and completions that JSON can hold.

A score row:   task, metric, filter, value, stderr, n, version, higher_is_better; for a group also weights,
               the share of each task in its mean.
A completion:  task, doc_id, prompt_hash (SHA-256), prompt, completion (or the log-likelihood of each
               choice), target, extracted (by filter), scores (by "metric,filter").
"""

from collections.abc import Mapping
from typing import Any

Record = dict[str, Any]


def score_rows(output: Mapping[str, Any], groups: Mapping[str, Any]) -> list[Record]:
    """One row for each task or group, metric and filter, groups after their tasks.

    Args:
        output: what ``lm_eval.evaluate`` returns.
        groups: name -> the harness's Group, as its TaskManager loads them.
    """
    tasks = [name for name in output["results"] if name not in groups]
    rows = [row for name in tasks for row in _rows_of(name, output, output["results"][name])]
    for name, scores in output.get("groups", {}).items():
        for row in _rows_of(name, output, scores):
            rows.append(row | {"weights": _weights(row, groups[name], rows)})
    return rows


def _rows_of(name: str, output: Mapping[str, Any], scores: Mapping[str, Any]) -> list[Record]:
    rows = []
    for key, value in scores.items():
        metric, comma, filter_name = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        stderr = scores.get(f"{metric}_stderr,{filter_name}")
        count = scores.get("sample_count", {}).get(key, scores.get("sample_len"))
        rows.append(
            {
                "task": name,
                "metric": metric,
                "filter": filter_name,
                "value": plain(value),
                # One row alone has no standard error: the harness says "N/A" or NaN.
                "stderr": plain(stderr) if isinstance(stderr, float) and stderr == stderr else None,
                "n": count,
                # The harness gives a number for a task and text for a group.
                "version": str(output["versions"].get(name)),
                "higher_is_better": output["higher_is_better"].get(name, {}).get(metric),
            }
        )
    return rows


def _weights(group_row: Record, group: Any, rows: list[Record]) -> dict[str, float]:
    key = (group_row["metric"], group_row["filter"])
    names = {task.task_name for task in group.get_all_tasks()}
    sizes = {r["task"]: r["n"] for r in rows if r["task"] in names and (r["metric"], r["filter"]) == key}
    by_size = any(m.metric == key[0] and m.weight_by_size for m in group.aggregate_metric_list or [])
    parts = {name: (size if by_size else 1) for name, size in sizes.items()}
    return {name: part / sum(parts.values()) for name, part in parts.items()}


def completions(samples: list[Mapping[str, Any]], task: str) -> list[Record]:
    """The completions of one task, one for each row, the filters joined, in the order of the rows."""
    records: dict[int, Record] = {}
    for sample in samples:
        record = records.setdefault(sample["doc_id"], _completion(sample, task))
        filter_name = sample["filter"]
        if record["completion"] is not None:
            record["extracted"][filter_name] = plain(sample["filtered_resps"][0])
        for metric in sample["metrics"]:
            record["scores"][f"{metric},{filter_name}"] = plain(sample[metric])
    return [records[doc_id] for doc_id in sorted(records)]


def _completion(sample: Mapping[str, Any], task: str) -> Record:
    first = sample["resps"][0][0]
    record: Record = {
        "task": task,
        "doc_id": sample["doc_id"],
        "prompt_hash": sample["prompt_hash"],
        "prompt": sample["arguments"][0][0],
        "completion": first if isinstance(first, str) else None,
        "target": plain(sample["target"]),
        "extracted": {},
        "scores": {},
    }
    if not isinstance(first, str):
        record["continuations"] = [a[1] for a in sample["arguments"] if len(a) > 1]
        record["loglikelihoods"] = [plain(r[0][0] if isinstance(r[0], tuple) else r[0]) for r in sample["resps"]]
    return record


def plain(value: Any) -> Any:
    """A value as JSON's own types: numpy scalars become numbers, tuples lists, what is left text."""
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if hasattr(value, "item"):
        return value.item()
    return value if isinstance(value, str | int | float | bool | None) else str(value)

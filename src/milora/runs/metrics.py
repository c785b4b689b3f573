"""metrics.jsonl: one JSON object per line, in the order in which things were measured."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from milora.models.atomic import write_text


def append_metric(path: str | os.PathLike[str], record: Mapping[str, Any]) -> None:
    """Append one line and hand it to the system at once, so that a reader sees the run as it goes.

    Args:
        path: the metrics.jsonl of a run; made when absent.
        record: numbers and strings. NaN and infinities become null, for JSON has neither.
    """
    line = json.dumps(finite(record), allow_nan=False)
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read the records of a metrics.jsonl; none when there is no file.

    A last line without its end, as a kill may leave it, is not a record.
    """
    file = Path(path)
    if not file.is_file():
        return []
    whole, _, _torn = file.read_text(encoding="utf-8").rpartition("\n")
    return [json.loads(line) for line in whole.splitlines() if line]


def keep_metrics_up_to(path: str | os.PathLike[str], step: int) -> None:
    """Drop the records after optimiser step ``step``, so that a resumed run writes each step once."""
    kept = [record for record in read_metrics(path) if record.get("step", 0) <= step]
    write_text(path, "".join(json.dumps(record) + "\n" for record in kept))


def kept_step(records: Sequence[Mapping[str, Any]], best: bool = False, save_steps: float | None = None) -> int | None:
    """The step whose weights a run ended with; None where no step is named.

    Args:
        records: of a metrics.jsonl.
        best: the run ended with its checkpoint of least validation loss, and not with its last step.
        save_steps: a checkpoint was written every so many steps and at the last one; None for at every evaluation.
    """
    steps = [int(record["step"]) for record in records if "step" in record]
    if not steps or not best:
        return max(steps, default=None)
    kept, least, at = max(steps), math.inf, None
    saved: set[int] = set()
    for record in records:
        if record.get("eval_loss") is None:
            continue
        step = int(record["step"])
        if record["eval_loss"] < least:
            least, at = record["eval_loss"], step
        if not save_steps or step == max(steps) or step % save_steps == 0:
            saved.add(step)
            kept = at if at in saved else kept
    return kept


def finite(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with null for NaN and infinities."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}

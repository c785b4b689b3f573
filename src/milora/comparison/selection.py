"""The learning rate of each arm, chosen by validation loss before anything else is measured.

A rate is chosen for each arm, rank and variant: the one whose mean validation loss over the choosing seeds is least; of
equal ones the smaller. A rate one of whose runs failed is not chosen while another has all of its runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from milora.comparison.folder import MEASURED
from milora.comparison.plan import Job, Rate, rate_name
from milora.comparison.statistics import mean_and_stderr
from milora.recipes.keys import MatchedRate
from milora.runs import RunFolder
from milora.runs.folder import read_json


def validation_loss(job: Job) -> float | None:
    """The validation loss at the end of a run; None where the run failed."""
    steps = read_json(RunFolder(job.recipe.output_dir).path / MEASURED).get("steps") or [{}]
    return steps[-1].get("validation_loss")


def resolved_rate(job: Job) -> float | None:
    """The learning rate of a run as a number; None for a matched one whose run was never started."""
    if not isinstance(job.learning_rate, MatchedRate):
        return job.learning_rate
    return RunFolder(job.recipe.output_dir).provenance().get("learning_rate", {}).get("resolved")


def choose(jobs: Sequence[Job]) -> dict[str, dict[str, Any]]:
    """What selection.json says, by cell.

    Args:
        jobs: the choosing runs of all cells, finished or failed.
    """
    found: dict[str, dict[str, Any]] = {}
    for key in dict.fromkeys(job.cell.key for job in jobs):
        own = [job for job in jobs if job.cell.key == key]
        rates = [_of_rate(rate, [job for job in own if job.learning_rate == rate]) for rate in own[0].cell.rates]
        tried = [row["learning_rate"] for row in rates if row["learning_rate"] is not None]
        best = _best(rates)
        for row in rates:
            row["chosen"] = row is best
        edge = best is not None and best["learning_rate"] in (min(tried), max(tried))
        found[key] = {
            "criterion": "validation loss",
            "seeds": sorted({job.seed for job in own}),
            "max_steps": own[0].recipe.max_steps,
            "at_the_edge": edge,  # a better rate may lie beyond those that were tried
            "rates": rates,
        }
    return found


def chosen_rates(record: dict[str, dict[str, Any]]) -> dict[str, str | None]:
    """Cell to the name of its chosen rate; None where every rate failed."""
    return {key: next((row["name"] for row in found["rates"] if row["chosen"]), None) for key, found in record.items()}


def _of_rate(rate: Rate, jobs: Sequence[Job]) -> dict[str, Any]:
    losses = [validation_loss(job) for job in jobs]
    mean, stderr = mean_and_stderr([loss for loss in losses if loss is not None])
    failed = [job.seed for job, loss in zip(jobs, losses, strict=True) if loss is None]
    return {
        "learning_rate": resolved_rate(jobs[0]), "name": rate_name(rate),
        "seeds": len(losses) - len(failed), "failed": failed, "validation_loss": mean, "stderr": stderr,
    }  # fmt: skip


def _best(rates: list[dict[str, Any]]) -> dict[str, Any] | None:
    whole = [row for row in rates if not row["failed"]] or [row for row in rates if row["validation_loss"] is not None]
    return min(whole, key=lambda row: (row["validation_loss"], row["learning_rate"] or 0.0), default=None)

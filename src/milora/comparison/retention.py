"""Retention by epoch: what a run knows at each of its checkpoints, and what it has forgotten by then.

MiCA (arXiv 2604.01694, Figures 2 and 3) draws the accuracy on questions about a text against the epochs of training on
it, with the base model's line and the standard error of 8 evaluation runs. A run is one order of each question's
choices; over n runs with scores x_i

    value = mean(x),    stderr = sd(x) / sqrt(n),    sd with n - 1

A task whose prompts are the same in each run is run once, and has no such error. The base model is read once; each
checkpoint's adapter is put onto it and taken off again.

retention.json of the run folder:

    {"settings": what was asked, files by name and SHA-256,
     "rows": [{"step", "epoch", "forgetting": {...} | null, "losses": {name: nats per token},
               "accuracies": {name: share},
               "scores": [{"task", "metric", "filter", "value", "stderr", "runs", "n"}]}]}

Step 0 is the base. A row is written as soon as it is measured; another call measures what is not there yet. MiCA asks
the instruct model with what the base model has learnt: `onto` names such a model, on which everything is measured then,
with the change added, and which step 0 is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from milora.analysis import forgetting, read_text
from milora.comparison.statistics import mean_and_stderr
from milora.comparison.tuned import asked_on, other_base, shown_name, tuned_at
from milora.comparison.wording import paragraphs, wording
from milora.errors import MiloraError
from milora.evaluation import evaluate
from milora.models.load import load_tokenizer
from milora.recipes.schema import Recipe
from milora.runs import RunFolder, read_metrics
from milora.runs.folder import read_json, write_json
from milora.training.checkpoints import newest_complete
from milora.training.shared_base import SharedBase

FILE = "retention.json"
PROBED = 8  # rows by which it is seen whether a task's prompts differ from run to run

Progress = Callable[[str, int, int], None]  # (what, done, all)


@dataclass(frozen=True)
class Asked:
    """What is measured at each step.

    Attributes:
        tasks: names of lm-evaluation-harness tasks.
        runs: evaluation runs of each task, with the task seeds 0, 1, ...
        tasks_at: steps at which tasks are run, 0 for the base; None for all.
        limit, batch_size, data_dir: of the tasks, as for `milora.evaluation.evaluate`; the batch size of losses too.
        text: a file, or wikitext-103, on which forgetting is measured; with its block and number of tokens.
        losses: name to a text file whose wording's loss and accuracy are measured.
        onto: measure on this model, with the run's change added to its weights; None measures on the base.
    """

    tasks: Sequence[str] = ()
    runs: int = 8
    tasks_at: Sequence[int] | None = None
    limit: int | None = None
    batch_size: int = 8
    data_dir: str | None = None
    text: str | None = None
    block: int = 512
    max_tokens: int | None = None
    losses: Mapping[str, str] = field(default_factory=dict[str, str])
    onto: str | None = None

    def __post_init__(self) -> None:
        if self.runs < 1:
            raise MiloraError(f"retention: runs: got {self.runs}, allowed 1 or more")
        if not (self.tasks or self.text or self.losses):
            raise MiloraError("retention: got nothing to measure, allowed tasks, a text, losses")

    def settings(self, base: SharedBase, onto: SharedBase | None) -> dict[str, Any]:
        """What decides the numbers, without the paths of this machine."""
        record: dict[str, Any] = {
            "tasks": list(self.tasks), "runs": self.runs, "limit": self.limit,
            "tasks_at": None if self.tasks_at is None else sorted(self.tasks_at),
            "text": None if self.text is None else _named(self.text), "block": self.block,
            "max_tokens": self.max_tokens, "losses": {name: _named(file) for name, file in self.losses.items()},
        }  # fmt: skip
        carried = {} if onto is None else {"onto": shown_name(self.onto), "onto_fingerprint": onto.fingerprint}
        return record | {"base_fingerprint": base.fingerprint} | carried


def retention(
    run_folder: str | Path,
    *,
    base: SharedBase | None = None,
    base_row: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    recipe: Recipe | None = None,
    progress: Progress | None = None,
    **asked: Any,
) -> dict[str, Any]:
    """Measure the base and each checkpoint of a run, and its end; rows that are there already are kept.

    Args:
        run_folder: a run; its whole checkpoints are measured, and its end where no checkpoint has its last step.
        base: the base model, where it is loaded already.
        base_row: the row of step 0 of another run on the same base with the same settings; measured if None.
        overwrite: measure everything again.
        recipe: in place of the run's own, e.g. with another device.
        progress: called with (step, measurements done, all).
        asked: the fields of `Asked`.

    Returns:
        What retention.json holds.

    Raises:
        MiloraError: no run, no checkpoint, rows measured with other settings, or what a measurement raises.
    """
    run = RunFolder(run_folder)
    recipe, what = recipe or run.recipe(), Asked(**asked)
    if base_row is not None and what.onto is not None:
        raise MiloraError("retention: got base_row and onto, allowed one of them")
    steps = _steps(run, recipe)
    base = base or SharedBase(recipe)
    onto = None if what.onto is None else other_base(recipe, what.onto)
    settings = what.settings(base, onto)
    file = run.path / FILE
    before = {} if overwrite else read_json(file)
    if before and before["settings"] != settings:
        both = [*settings, *(key for key in before["settings"] if key not in settings)]
        changed = [key for key in both if before["settings"].get(key) != settings.get(key)]
        raise MiloraError(f"retention: {file} was measured with other {', '.join(changed)}; --overwrite replaces it")
    rows = {row["step"]: row for row in before.get("rows", [])}
    if base_row is not None and 0 not in rows:
        rows[0] = dict(base_row)
    bench = _Bench.of(recipe, what, base, onto)
    for done, (step, (epoch, place)) in enumerate(steps.items()):
        if step not in rows:
            rows[step] = {"step": step, "epoch": epoch, **_row(bench, run, step, place)}
            write_json(file, {"settings": settings, "rows": [rows[s] for s in sorted(rows)]})
        if progress is not None:
            progress("steps", done + 1, len(steps))
    record = {"settings": settings, "rows": [rows[s] for s in sorted(rows)]}
    if record != before:
        write_json(file, record)
    return record


def _steps(run: RunFolder, recipe: Recipe) -> dict[int, tuple[float, int | None]]:
    """Step to its epoch and the checkpoint that holds it, None for the run's end; 0 is the base."""
    found: dict[int, tuple[float, int | None]] = {0: (0.0, None)}
    for folder in run.checkpoints():
        if newest_complete([folder])[0] is not None:
            state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
            found[int(state["global_step"])] = (float(state["epoch"]), int(folder.name.removeprefix("checkpoint-")))
    ended = run.model.is_dir() or (run.path / "adapter_config.json").is_file()
    last = max(read_metrics(run.metrics_file), key=lambda record: record.get("step", 0), default={})
    # With load_best_model_at_end the run ends with one of its checkpoints, not with its last step.
    if ended and not recipe.load_best_model_at_end and last.get("step", 0) not in found:
        found[int(last["step"])] = (float(last["epoch"]), None)
    if len(found) == 1:
        raise MiloraError(f"retention: {run.path} holds neither a whole checkpoint nor the end of a run")
    return dict(sorted(found.items()))


@dataclass
class _Bench:
    """What measuring needs besides the model, read once."""

    recipe: Recipe
    what: Asked
    base: SharedBase
    onto: SharedBase | None
    tokenizer: Any
    text: str | None
    paragraphs: dict[str, list[list[int]]]
    differing: dict[str, bool] = field(default_factory=dict[str, bool])  # task: whether its runs differ

    @classmethod
    def of(cls, recipe: Recipe, what: Asked, base: SharedBase, onto: SharedBase | None) -> _Bench:
        asked = asked_on(recipe, what.onto)
        source = {"trust_remote_code": asked.trust_remote_code, "gguf_file": asked.gguf_file}
        tokenizer = load_tokenizer(asked.model_name_or_path, **source)
        context = getattr((onto or base).model.config, "max_position_embeddings", None)
        read = {name: paragraphs(file, tokenizer, context) for name, file in what.losses.items()}
        return cls(recipe, what, base, onto, tokenizer, read_text(what.text) if what.text else None, read)


def _row(bench: _Bench, run: RunFolder, step: int, place: int | None) -> dict[str, Any]:
    base, what = bench.base, bench.what
    where: AbstractContextManager[Any] = tuned_at(run, place, bench.recipe, base, bench.onto)
    if step == 0:
        untouched = (bench.onto or base).model
        where = nullcontext((untouched, untouched))
    with where as (model, base_model):
        pad = bench.tokenizer.pad_token_id or 0
        known = {
            name: wording(model, rows, pad_token_id=pad, batch_size=what.batch_size)
            for name, rows in bench.paragraphs.items()
        }
        moved = None
        if bench.text is not None:
            moved = forgetting(
                model, bench.tokenizer, bench.text, base_model=base_model, block=what.block, max_tokens=what.max_tokens
            ).as_dict()
        asked = what.tasks_at is None or step in what.tasks_at
        scores = [score for task in what.tasks if asked for score in _scores(bench, model, task)]
    return {
        "forgetting": moved,
        "losses": {name: found["nll"] for name, found in known.items()},
        "accuracies": {name: found["accuracy"] for name, found in known.items()},
        "scores": scores,
    }


def _scores(bench: _Bench, model: Any, task: str) -> list[dict[str, Any]]:
    """A task's scores over several evaluation runs."""
    what = bench.what
    common = {"batch_size": what.batch_size, "data_dir": what.data_dir}
    first = evaluate(model, bench.tokenizer, task, task_seed=0, limit=what.limit, **common)
    if task not in bench.differing:
        probe = what.runs > 1 and evaluate(model, bench.tokenizer, task, task_seed=1, limit=PROBED, **common)
        bench.differing[task] = bool(probe) and _prompts(probe) != _prompts(first)
    others = range(1, what.runs if bench.differing[task] else 1)
    found = [first] + [
        evaluate(model, bench.tokenizer, task, task_seed=seed, limit=what.limit, **common) for seed in others
    ]
    return [_over_runs(rows) for rows in zip(*(result["scores"] for result in found), strict=True)]


def _prompts(result: Mapping[str, Any]) -> list[Any]:
    """What the first rows of each task are asked."""
    kept = ("prompt", "target", "continuations")
    rows = [row for completions in result["completions"].values() for row in completions[:PROBED]]
    return [[row.get(key) for key in kept] for row in rows]


def _over_runs(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One score out of those of several runs."""
    mean, stderr = mean_and_stderr([float(row["value"]) for row in rows])
    names = {key: rows[0][key] for key in ("task", "metric", "filter")}
    return {**names, "value": mean, "stderr": stderr, "runs": len(rows), "n": rows[0]["n"]}


def _named(file: str) -> str:
    path = Path(file).expanduser()
    if not path.is_file():
        return file
    return f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}"

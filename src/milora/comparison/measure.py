"""What is measured of a run, and of the base model: validation loss, forgetting, weight changes, samples, tasks.

Everything goes into the run folder, beside what training wrote:

    measured.json     {"settings": what was asked, "steps": [{"step", "validation_loss", "forgetting"}],
                       "validation_rows": the losses row by row at the end,
                       "predicted": first steps beside LoRA's}
    analysis.json     the change of each weight
    samples.jsonl     answers of the base and of the tuned model to validation prompts
    forgetting.json   forgetting at the end, as `milora forgetting` writes it
    eval/             tasks, base and tuned side by side

The base model's own lie in `base/` of the comparison, `base/VARIANT/` where there are several variants: eval/, and
measured.json with its validation loss {"by_seed": {seed: {"validation_loss", "rows"}}}.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from milora.adapters import model_changes
from milora.analysis import analyse, forgetting
from milora.comparison.bench import Bench
from milora.comparison.first_steps import first_steps
from milora.comparison.folder import MEASURED
from milora.comparison.grid import Measure, settings_of
from milora.comparison.plan import Job
from milora.comparison.samples import FILE as SAMPLES
from milora.comparison.samples import write_samples
from milora.comparison.tuned import shown_name, tuned_at
from milora.comparison.validation import mean_loss, row_losses
from milora.errors import MiloraError
from milora.evaluation import evaluate, evaluate_base_and_tuned, write_results
from milora.runs import RunFolder, kept_step, read_metrics, refresh_card
from milora.runs.changed import changes_of
from milora.runs.folder import read_json, write_json
from milora.training.masking import IMAGE
from milora.training.pictures import PictureCollator
from milora.training.shared_base import SharedBase

# What decides the rows of measured.json, what the tasks' results and what the samples.
BY_STEP = ("validation", "validation_batch_size", "forgetting", "onto")
OF_TASKS = ("tasks", "limit", "batch_size", "data_dir", "gen_kwargs", "onto")
OF_SAMPLES = ("samples", "sample_tokens", "validation", "onto")

Losses = list[dict[str, float]] | None


def is_measured(run: RunFolder, settings: dict[str, Any]) -> bool:
    """Whether what is asked for was measured already."""
    record = read_json(run.path / MEASURED)
    return record.get("settings") == settings and (not settings.get("predicted") or "predicted" in record)


def has_loss(run: RunFolder, settings: dict[str, Any]) -> bool:
    """Whether the validation loss was measured on the model that is asked, whatever else was."""
    before = read_json(run.path / MEASURED).get("settings", {})
    return bool(before) and all(before.get(name) == settings.get(name) for name in ("validation", "onto"))


def measure_run(job: Job, bench: Bench, base: SharedBase) -> None:
    """Measure a finished run, at every step that is asked for and at the end; what was measured so already is kept.

    Raises:
        MiloraError: a checkpoint that is to be measured is not there, or what a measurement raises.
    """
    run, now = RunFolder(job.recipe.output_dir), settings_of(bench.grid.measure, whole=job.measured)
    before = read_json(run.path / MEASURED)
    kept = {row["step"]: row for row in before["steps"]} if _same(before, now, BY_STEP) else {}
    last, losses, predicted = _last_step(run), before.get("validation_rows"), None
    onto = bench.onto(job.recipe)
    rows: list[dict[str, Any]] = []
    for step in sorted({*(bench.grid.measure.at if job.measured else ()), last}):
        at_the_end = step == last and job.measured
        row = kept.get(step)
        if row is None or at_the_end:
            with tuned_at(run, None if step == last else step, job.recipe, base, onto) as (model, base_model):
                if row is None:
                    row, found = _at_step(model, base_model, job, bench)
                    losses = found if step == last else losses
                if at_the_end:
                    _ask(model, base_model, job, bench, run, before)
                if at_the_end and onto is None:
                    predicted = _look_into(model, job, bench, run, before)
        rows.append({**row, "step": step})
    text = bench.grid.measure.forgetting
    if text is not None and rows[-1]["forgetting"] is not None:
        asked = {} if onto is None else {"onto": shown_name(bench.grid.measure.onto)}
        write_json(run.forgetting_file, {"text": Path(text.text).name, **asked, **rows[-1]["forgetting"]})
    if job.measured and onto is not None:  # the change is that of the run's own base
        with tuned_at(run, None, job.recipe, base) as (model, _):
            predicted = _look_into(model, job, bench, run, before)
    record = {"settings": now, "steps": rows, "validation_rows": losses, "predicted": predicted}
    write_json(run.path / MEASURED, record)
    refresh_card(run)


def measure_base(job: Job, bench: Bench, base: SharedBase) -> None:
    """Measure the base model on what its runs are measured on; the same measurements are not done again.

    Where validation rows are split off the training rows, each seed has its own, and the base its loss on each.
    """
    folder, measure = bench.base_folder[job.cell.variant.label], bench.grid.measure
    settings = {**settings_of(measure, whole=True), "seeds": bench.grid.seeds, "model": job.recipe.model_name_or_path}
    if read_json(folder / MEASURED).get("settings") == settings:
        return
    model = (bench.onto(job.recipe) or base).model.eval()
    by_seed: dict[str, Any] = {}
    for seed in bench.grid.seeds:
        of_seed = replace(job, seed=seed, recipe=job.recipe.model_copy(update={"seed": seed}))
        same = job.recipe.eval_dataset and by_seed
        losses = next(iter(by_seed.values()))["rows"] if same else _losses(model, of_seed, bench)
        if losses is not None:
            by_seed[str(seed)] = {"validation_loss": mean_loss(losses), "rows": losses}
    if measure.tasks:
        write_results(
            folder / "eval",
            evaluate(model, bench.reader(bench.asked(job.recipe)), measure.tasks, **_task_settings(measure)),
        )
    write_json(folder / MEASURED, {"settings": settings, "by_seed": by_seed})


def _at_step(model: Any, base_model: Any, job: Job, bench: Bench) -> tuple[dict[str, Any], Losses]:
    losses, moved, text = _losses(model, job, bench), None, bench.grid.measure.forgetting
    if job.measured and text is not None:
        found = forgetting(
            model, bench.tokenizer(bench.asked(job.recipe)), bench.text(text.text), base_model=base_model,
            block=text.block, max_tokens=text.max_tokens, batch_size=text.batch_size,
        )  # fmt: skip
        moved = found.as_dict()
    return {"validation_loss": None if losses is None else mean_loss(losses), "forgetting": moved}, losses


def _look_into(model: Any, job: Job, bench: Bench, run: RunFolder, before: dict[str, Any]) -> Any:
    """Analyse the change where that was not done, and return what is predicted of it."""
    measure, now = bench.grid.measure, settings_of(bench.grid.measure, whole=True)
    whole = job.recipe.method == "full"
    analysed = _same(before, now, ("analysis",)) and run.analysis_file.is_file()
    if measure.analysis is not None and not analysed:
        # The weights that an adapter would have changed, so that the means are over the same matrices.
        changes = changes_of(run.path, targets=job.recipe.target_modules) if whole else model_changes(model)
        write_json(run.analysis_file, analyse(changes, r=measure.analysis.r or job.cell.r, seed=measure.analysis.seed))
    if not measure.predicted or whole:
        return None
    return before.get("predicted") or first_steps(model, job, bench.grid)


def _ask(model: Any, base_model: Any, job: Job, bench: Bench, run: RunFolder, before: dict[str, Any]) -> None:
    """Samples and tasks, where that was not done with the same settings."""
    measure, now, recipe = bench.grid.measure, settings_of(bench.grid.measure, whole=True), bench.asked(job.recipe)
    if measure.samples and not (_same(before, now, OF_SAMPLES) and (run.path / SAMPLES).is_file()):
        rows = bench.rows(job.recipe) if measure.validation else None
        tokenizer, pictures = bench.tokenizer(recipe), bench.pictures(recipe)
        write_samples(run.path, model, base_model, tokenizer, rows, measure.samples, measure.sample_tokens, pictures)
    if measure.tasks and not (_same(before, now, OF_TASKS) and run.eval_results_file.is_file()):
        evaluate_base_and_tuned(
            model,
            bench.reader(recipe),
            measure.tasks,
            base_results=_base_results(bench.base_folder[job.cell.variant.label]),
            run_folder=run.path,
            overwrite=True,
            **_task_settings(measure),
        )


def _same(before: dict[str, Any], now: dict[str, Any], names: Sequence[str]) -> bool:
    """Whether settings are what they were when a record was written."""
    settings = before.get("settings", {})
    return bool(before.get("steps")) and all(settings.get(name) == now.get(name) for name in names)


def _losses(model: Any, job: Job, bench: Bench) -> Losses:
    rows = bench.rows(job.recipe) if bench.grid.measure.validation else None
    if rows is None:
        return None
    pad, pictures = bench.tokenizer(job.recipe).pad_token_id, bench.pictures(job.recipe)
    shown = PictureCollator(pictures) if pictures and IMAGE in rows.column_names else None
    size = bench.grid.measure.validation_batch_size
    return row_losses(model, rows, pad_token_id=pad or 0, batch_size=size, collator=shown)


def _task_settings(measure: Measure) -> dict[str, Any]:
    names = ("limit", "batch_size", "data_dir", "gen_kwargs")
    return {name: getattr(measure, name) for name in names}


def _base_results(folder: Path) -> dict[str, Any]:
    """What `evaluate` returned of the base model, out of the files that it was written to."""
    results = read_json(folder / "eval" / "results.json")
    files = sorted((folder / "eval").glob("*.jsonl"))
    lines = {file.stem: file.read_text(encoding="utf-8").split("\n") for file in files}
    return results | {"completions": {task: [json.loads(x) for x in found if x] for task, found in lines.items()}}


def _last_step(run: RunFolder) -> int:
    """The step whose weights the run ended with."""
    recipe = run.recipe()
    step = kept_step(read_metrics(run.metrics_file), recipe.load_best_model_at_end, recipe.save_steps)
    if step is None:
        raise MiloraError(f"{run.path}: metrics.jsonl names no step")
    return step

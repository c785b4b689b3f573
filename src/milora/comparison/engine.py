"""A grid becomes a comparison folder: rates are chosen, runs are done and measured, results are added up.

Three stages, each of which goes on where an earlier call has stopped: the choosing runs, of which nothing but the
validation loss is looked at; the runs at the chosen rates, measured in full; the sums.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from milora.comparison.bench import Bench
from milora.comparison.folder import FAILED, ComparisonFolder
from milora.comparison.grid import Grid
from milora.comparison.load import PACKAGED_MODEL, shared_keys
from milora.comparison.plan import Job, measured_jobs, selection_jobs
from milora.comparison.results import results
from milora.comparison.selection import choose, chosen_rates
from milora.comparison.tuned import check_carried, check_shapes
from milora.comparison.work import Worker, is_finished
from milora.errors import MiloraError
from milora.models.checkpoint import is_local
from milora.runs import RunFolder
from milora.runs.folder import read_json, write_json
from milora.training.shared_base import SAME

# What decides the rows that are read, besides the seed where they are drawn.
DATA = ("dataset", "dataset_format", "dataset_split", "dataset_limit", "prompt_template", "empty_rows", "image_folder")
HEADROOM = 2.0  # a process needs about this many times the base model's weights: they, what trains, and a batch


def compare(
    grid: Grid, *, overwrite: bool = False, all_rates: bool = False, console: Console | None = None
) -> dict[str, Any]:
    """Run, measure and compare; a call on a folder that holds part of it goes on with the rest.

    Args:
        grid: what is compared; ``output_dir`` becomes the comparison folder.
        overwrite: replace the comparison that lies there.
        all_rates: measure the rates that were not chosen too, for the picture of learning against forgetting.
        console: where progress goes.

    Returns:
        What comparison.json says.

    Raises:
        MiloraError: a grid, a model or a folder that cannot be used. A run that fails is in the result as failed.
    """
    console, folder = console or Console(quiet=True), ComparisonFolder(grid.output_dir)
    planned(grid)  # every recipe and choice is checked before anything is written
    folder.create(grid, overwrite=overwrite)
    asked = grid
    grid = grid.model_copy(update={"measure": grid.measure.model_copy(update={"onto": _resolved(grid.measure.onto)})})
    models = prepare_models(grid, folder, console)
    choosing = selection_jobs(grid, folder.path, models)
    everything = [*choosing, *measured_jobs(grid, folder.path, models, {}, all_rates=True)]
    _check_runs(everything, folder)
    _check_onto(everything, grid.measure.onto)
    check_inputs(everything, folder)
    folder.write_grid(asked)
    bench = Bench(grid, {v.label: folder.base(v.label, len(grid.forms()) == 1) for v in grid.forms()})
    if choosing:
        console.print(f"choosing learning rates: {len(choosing)} runs", highlight=False)
        _do(choosing, folder, bench, console)
        write_json(folder.selection_file, choose(choosing))
    chosen = chosen_rates(read_json(folder.selection_file)) if choosing else {}
    jobs = measured_jobs(grid, folder.path, models, chosen, all_rates)
    console.print(f"comparing: {len(jobs)} runs", highlight=False)
    _do(jobs, folder, bench, console)
    Worker(folder, bench, console).measure_bases(measured_jobs(grid, folder.path, models, {}, all_rates=True))
    check_inputs([*choosing, *jobs], folder)
    # An arm whose rates all failed has no run at a chosen one; its choosing runs say why.
    lost = [job for job in choosing if chosen[job.cell.key] is None]
    record = results(grid, folder, [*jobs, *lost], chosen)
    write_json(folder.result_file, record)
    return record


def prepare_models(grid: Grid, folder: ComparisonFolder, console: Console) -> dict[str, str]:
    """The model folders of variants that have one of their own; a rescaled model is made where it is not there yet."""
    found: dict[str, str] = {}
    for variant in grid.forms():
        keys = {**shared_keys(grid), **variant.keys}
        named = str(keys.get("model_name_or_path", ""))
        source = str(_resolved(named))
        if variant.rescale is not None:
            source = _rescaled(source, folder.models / variant.label, variant.rescale, console)
        if source != named:
            found[variant.label] = source
    return found


def _resolved(name: str | None) -> str | None:
    """A model's name or folder; that of the package's model is made where it is not there yet."""
    if name != PACKAGED_MODEL:
        return name
    from milora.models.smollm2 import smollm2_folder

    return str(smollm2_folder())


def _check_onto(jobs: Sequence[Job], onto: str | None) -> None:
    """The model that is asked must be there, and of the shapes of each base, before any run is trained."""
    for recipe in {job.recipe.model_name_or_path: job.recipe for job in jobs}.values() if onto is not None else ():
        check_shapes(recipe, str(onto))


def _rescaled(source: str, target: Path, scale: float, console: Console) -> str:
    from milora.models.rescale import rescale

    note, asked = target.with_name(f"{target.name}.json"), {"model_name_or_path": source, "scale": scale}
    if not target.is_dir():
        console.print(f"rescaling {source} by {scale:g}", highlight=False)
        write_json(note, asked)
        rescale(source, target, scale=scale)
    made = read_json(note) or asked  # an older folder does not say
    if made != asked:
        raise MiloraError(
            f"output_dir: {target} is {made['model_name_or_path']} rescaled by {made['scale']:g}, got {source} by"
            f" {scale:g}; --overwrite replaces the comparison"
        )
    return str(target)


def _check_runs(jobs: Sequence[Job], folder: ComparisonFolder) -> None:
    """Runs that lie there must be those that the grid asks for."""
    problems = []
    for job in jobs:
        run = RunFolder(job.recipe.output_dir)
        if run.holds_run:
            try:
                run.check(job.recipe, resume=True)
            except MiloraError as error:
                problems.append(str(error).removeprefix("--resume: "))
    if problems:
        raise MiloraError(
            f"output_dir: {folder.path} holds runs of another grid, --overwrite replaces them: " + "; ".join(problems)
        )


def check_inputs(jobs: Sequence[Job], folder: ComparisonFolder) -> None:
    """Runs of one data set and base must have read the same rows and weights, though the files keep their names."""
    first: dict[tuple[str, ...], tuple[str, str]] = {}
    for job in jobs:
        found, recipe = RunFolder(job.recipe.output_dir).provenance(), job.recipe
        drawn = str(job.seed) if recipe.dataset_limit else ""
        rows = ("data_hash", *(str(getattr(recipe, name)) for name in DATA), drawn)
        base = ("base_fingerprint", *(str(getattr(recipe, name)) for name in SAME if name != "device"))
        for key in (rows, base):
            value = found.get(key[0])
            was, whose = first.setdefault(key, (value, job.place)) if value else (value, "")
            if was != value:
                raise MiloraError(
                    f"output_dir: {folder.path}: {key[1]} has changed between {whose} and {job.place}"
                    f" ({key[0]} {was} and {value}); --overwrite does all runs again"
                )


def _do(jobs: Sequence[Job], folder: ComparisonFolder, bench: Bench, console: Console) -> None:
    procs = processes_that_fit(bench.grid.procs, jobs, console, bench.grid.measure.onto)
    if procs == 1:
        Worker(folder, bench, console).work(jobs)
        return
    context = multiprocessing.get_context("spawn")
    # Two threads of two processes on two cores wait for each other more than they work.
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        workers = [context.Process(target=_work, args=(folder.path, bench, list(jobs))) for _ in range(procs)]
        for worker in workers:
            worker.start()
    finally:
        os.environ.pop("OMP_NUM_THREADS") if before is None else os.environ.update(OMP_NUM_THREADS=before)
    for worker in workers:
        worker.join()
    for code in {worker.exitcode for worker in workers} - {0}:
        _note_lost(jobs, code)


def _work(path: Path, bench: Bench, jobs: list[Job]) -> None:
    torch.set_num_threads(1)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    Worker(ComparisonFolder(path), bench, console, shows_training=False).work(jobs)


def _note_lost(jobs: Sequence[Job], code: int | None) -> None:
    """Runs that a process left when it ended badly."""
    for job in jobs:
        run = RunFolder(job.recipe.output_dir)
        if run.holds_run and not is_finished(run) and not (run.path / FAILED).is_file():
            write_json(run.path / FAILED, {"error": f"its process ended with exit code {code}", "where": "process"})


def processes_that_fit(procs: int, jobs: Sequence[Job], console: Console, onto: str | None = None) -> int:
    """How many of so many processes have room for a base model of their own, and work to do; at least one."""
    procs = max(1, min(procs, len(jobs)))
    if procs == 1:
        return 1
    size = max((_weights_size(name) for name in {job.recipe.model_name_or_path for job in jobs}), default=0)
    size *= 1 if onto is None else 2  # the model that is asked, and its copy that carries a change
    fit = procs if size == 0 else max(1, int(_free_memory() // (HEADROOM * size)))
    if fit < procs:
        console.print(f"memory allows {fit} of {procs} processes at once", style="yellow", highlight=False)
    return min(procs, fit)


def _weights_size(model_name_or_path: str) -> int:
    """Bytes of a local checkpoint; 0 where they are not known."""
    if not is_local(model_name_or_path):
        return 0
    return sum(file.stat().st_size for file in Path(model_name_or_path).expanduser().glob("*.safetensors"))


def _free_memory() -> int:
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    file = Path("/proc/meminfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    available = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return available[0] if available else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def planned(grid: Grid) -> Mapping[str, list[Job]]:
    """The runs of a grid without doing any: those that choose rates, and those that may be measured, at every rate.

    Raises:
        MiloraError: a recipe of them that is wrong.
    """
    output = Path(grid.output_dir)
    runs = measured_jobs(grid, output, {}, {}, all_rates=True)
    for job in runs if grid.measure.onto is not None else ():
        check_carried(job.recipe)
    return {"selection": selection_jobs(grid, output, {}), "runs": runs}

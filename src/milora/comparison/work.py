"""One process at a list of runs: it takes those that nobody is at, one by one, and leaves the rest to others.

Who is at a run holds its lock; locks are the system's and go with the process. A run that is finished is passed over, a
stopped one goes on from its last checkpoint, one that fails is noted as failed and the next is taken.
"""

from __future__ import annotations

import gc
import shutil
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from rich.console import Console

from milora.comparison.bench import Bench
from milora.comparison.folder import FAILED, ComparisonFolder
from milora.comparison.grid import settings_of
from milora.comparison.measure import has_loss, is_measured, measure_base, measure_run
from milora.comparison.plan import Job
from milora.recipes.schema import Recipe
from milora.runs import RunFolder
from milora.runs.folder import write_json
from milora.training.quiet import quiet_libraries
from milora.training.shared_base import SAME, SharedBase
from milora.training.train import train


@dataclass
class Worker:
    """What a process keeps from run to run: the base model, texts and tokenised rows."""

    folder: ComparisonFolder
    bench: Bench
    console: Console
    shows_training: bool = True
    _base: SharedBase | None = None
    _base_keys: list[object] = field(default_factory=list)

    def work(self, jobs: Sequence[Job]) -> None:
        """Do what is to be done of a list; runs that another process holds are waited for at the end."""
        held = []
        with quiet_libraries(), _cheap_collections():
            for job in jobs:
                try:
                    self._take(job, timeout=0)
                except Timeout:
                    held.append(job)
            for job in held:  # the other process may have died in between
                self._take(job, timeout=-1)

    def measure_bases(self, jobs: Sequence[Job]) -> None:
        """Measure the base model of each variant that the list names."""
        for job in {job.cell.variant.label: job for job in reversed(jobs)}.values():
            with quiet_libraries(), FileLock(self.folder.locks / f"base-{job.cell.variant.label}.lock"):
                measure_base(job, self.bench, self._base_of(job.recipe))

    def _take(self, job: Job, timeout: float) -> None:
        with FileLock(self.folder.locks / f"{Path(job.place).parent}-{job.name}.lock", timeout=timeout):
            run, settings = RunFolder(job.recipe.output_dir), settings_of(self.bench.grid.measure, whole=job.measured)
            if is_measured(run, settings) or (not job.measured and is_finished(run) and has_loss(run, settings)):
                _forget_failure(run)  # of other settings, where an earlier call has failed to measure them
            else:
                self._do(job, run)

    def _do(self, job: Job, run: RunFolder) -> None:
        self.console.print(f"{job.name}: " + ("measuring" if is_finished(run) else "training"), highlight=False)
        stage = "training"
        try:
            _forget_failure(run)
            base = self._base_of(job.recipe)
            if not is_finished(run):
                quiet = Console(quiet=True)
                self.bench.release()
                train(
                    job.recipe,
                    resume=run.holds_run,
                    console=self.console if self.shows_training else quiet,
                    base=base,
                )
            stage = "measuring"
            if job.measured and self.bench.grid.measure.tasks:
                self.measure_bases([job])
            measure_run(job, self.bench, base)
            if job.measured and not self.bench.grid.keep_checkpoints:
                for checkpoint in run.checkpoints():
                    shutil.rmtree(checkpoint)
        except Exception as error:
            self._note_failure(run, job, stage, error)
        finally:
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _note_failure(self, run: RunFolder, job: Job, stage: str, error: Exception) -> None:
        # A base that a run has spoilt serves no further run.
        self._base = None
        self.bench.release()
        line = " ".join(str(error).split()) or type(error).__name__
        frames = traceback.extract_tb(error.__traceback__)
        where = f"{stage}: {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else stage
        run.path.mkdir(parents=True, exist_ok=True)
        write_json(run.path / FAILED, {"error": f"{type(error).__name__}: {line}", "where": where})
        self.console.print(f"{job.name}: failed ({line})", style="red", highlight=False)

    def _base_of(self, recipe: Recipe) -> SharedBase:
        keys = [getattr(recipe, name) for name in SAME]
        if self._base is None or self._base_keys != keys:
            self._base = None
            gc.collect()
            self._base, self._base_keys = SharedBase(recipe), keys
        return self._base


@contextmanager
def _cheap_collections() -> Iterator[None]:
    # Trainers collect garbage after every run; with all that torch and transformers hold that takes longer than a small
    # run does. What is there before the first run is no garbage.
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def is_finished(run: RunFolder) -> bool:
    """Whether the run was trained to its end: its adapter, or its model, is there."""
    return run.holds_run and ((run.path / "adapter_config.json").is_file() or run.model.is_dir())


def _forget_failure(run: RunFolder) -> None:
    (run.path / FAILED).unlink(missing_ok=True)
    if run.path.is_dir() and not any(run.path.iterdir()):
        run.path.rmdir()

"""What a call on a folder that holds part of a comparison keeps, measures again and refuses. Nothing is trained."""

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from milora.comparison import engine, measure, work
from milora.comparison.folder import ComparisonFolder
from milora.comparison.grid import settings_of
from milora.comparison.load import check_grid
from milora.comparison.plan import Job, measured_jobs
from milora.errors import MiloraError
from milora.runs import RunFolder

QUIET = Console(quiet=True)


@pytest.fixture
def job(small) -> Job:
    """The first run of the grid, as if it had been trained to step 4."""
    grid = check_grid(small)
    (job, *_) = measured_jobs(grid, Path(grid.output_dir), {}, {})
    run = RunFolder(job.recipe.output_dir)
    run.create(job.recipe)
    run.metrics_file.write_text('{"step": 4, "loss": 1.0}\n')
    (run.path / "adapter_config.json").write_text("{}")
    return job


@pytest.fixture
def losses(monkeypatch):
    """Steps have their number as loss, and the models are none."""
    monkeypatch.setattr(measure, "tuned_at", lambda run, step, *_: nullcontext((step, None)))

    def at_step(step, *_):
        loss = float(step or 4)
        return {"validation_loss": loss, "forgetting": None}, [{"loss": loss, "tokens": 1}]

    monkeypatch.setattr(measure, "_at_step", at_step)
    monkeypatch.setattr(measure, "_ask", lambda *_: None)
    monkeypatch.setattr(measure, "_look_into", lambda *_: None)


def bench(small) -> SimpleNamespace:
    return SimpleNamespace(grid=check_grid(small), onto=lambda recipe: None)


def test_a_step_that_is_measured_later_leaves_the_rows_of_the_end(small, job, losses):
    for at in ([2], [2, 3]):
        small["measure"]["at"] = at
        measure.measure_run(job, bench(small), None)
    record = json.loads((RunFolder(job.recipe.output_dir).path / "measured.json").read_text())
    assert [row["step"] for row in record["steps"]] == [2, 3, 4]
    assert record["validation_rows"] == [{"loss": 4.0, "tokens": 1}]


def test_what_the_best_checkpoint_measured_stands_under_its_step(small, losses):
    small["base"] |= {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"}
    small["measure"]["at"] = []
    grid = check_grid(small)
    (job, *_) = measured_jobs(grid, Path(grid.output_dir), {}, {})
    run = RunFolder(job.recipe.output_dir)
    run.create(job.recipe)
    lines = [{"step": step, "eval_loss": loss} for step, loss in ((1, 2.0), (2, 1.0), (3, 1.5), (4, 1.8))]
    run.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    measure.measure_run(job, bench(small), None)
    assert [row["step"] for row in json.loads((run.path / "measured.json").read_text())["steps"]] == [2]


def test_a_failure_to_measure_something_else_is_forgotten(small, job, losses, monkeypatch):
    grid, run = check_grid(small), RunFolder(job.recipe.output_dir)
    measure.measure_run(job, bench(small), None)
    (run.path / "failed.json").write_text('{"error": "no checkpoint of step 3", "where": "measuring"}')
    monkeypatch.setattr(work.Worker, "_do", lambda *_: pytest.fail("it was measured"))
    folder = ComparisonFolder(grid.output_dir)
    work.Worker(folder, SimpleNamespace(grid=grid), QUIET).work([job])
    assert not (run.path / "failed.json").exists()
    assert measure.is_measured(run, settings_of(grid.measure, whole=True))


def test_runs_that_read_other_rows_or_weights_are_not_compared(small, job):
    grid = check_grid(small)
    folder, jobs = ComparisonFolder(grid.output_dir), measured_jobs(grid, Path(grid.output_dir), {}, {})
    RunFolder(job.recipe.output_dir).write_provenance({"data_hash": "aa", "base_fingerprint": "cc"})
    other = RunFolder(jobs[3].recipe.output_dir)
    other.create(jobs[3].recipe)
    for found, message in (
        (
            {"data_hash": "bb", "base_fingerprint": "cc"},
            r"rows.jsonl has changed between runs/lora-r4.*-s0 and runs/mi",
        ),
        ({"data_hash": "aa", "base_fingerprint": "dd"}, r"tiny_llama.* has changed .*base_fingerprint cc and dd"),
    ):
        other.write_provenance(found)
        with pytest.raises(MiloraError, match=message):
            engine.check_inputs(jobs, folder)
    other.write_provenance({"data_hash": "aa", "base_fingerprint": "cc"})
    engine.check_inputs(jobs, folder)
    # The weights of another dtype or quantisation have another fingerprint of their own.
    other.write_provenance({"data_hash": "aa", "base_fingerprint": "dd"})
    small["arms"][1]["keys"] = {"dtype": "bfloat16"}
    engine.check_inputs(measured_jobs(check_grid(small), Path(grid.output_dir), {}, {}), folder)
    # Rows that are drawn with the seed are others for another seed.
    small["base"]["dataset_limit"] = 50
    drawn = measured_jobs(check_grid(small), Path(grid.output_dir), {}, {})
    other.write_provenance({"data_hash": "bb", "base_fingerprint": "cc"})
    engine.check_inputs(drawn, folder)


def test_a_rescaled_base_is_that_of_its_grid(small):
    small["variants"] = [{"label": "rescaled", "rescale": 8}]
    folder = ComparisonFolder(small["output_dir"])
    folder.create(check_grid(small))
    made = engine.prepare_models(check_grid(small), folder, QUIET)
    assert engine.prepare_models(check_grid(small), folder, QUIET) == made
    small["variants"] = [{"label": "rescaled", "rescale": 4}]
    with pytest.raises(MiloraError, match=r"models/rescaled is .* rescaled by 8, got .* by 4; --overwrite replaces"):
        engine.prepare_models(check_grid(small), folder, QUIET)

"""A run that is killed and gone on with ends like one that was never stopped; the best checkpoint comes back."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from milora.errors import MiloraError
from milora.recipes.schema import Recipe
from milora.runs import RunFolder, read_metrics
from milora.training.checkpoints import newest_complete
from milora.training.train import train

# Kills itself, as the system would, when it is told of the given step's log line: after a checkpoint.
KILLED = """
import json, os, signal, sys
import torch
torch.set_num_threads(1)
from milora.recipes.schema import Recipe
from milora.training import progress
from milora.training.train import train

settings, kill_at = json.loads(sys.argv[1]), int(sys.argv[2])
on_log = progress.MetricsWriter.on_log
def killing(self, args, state, control, **kwargs):
    on_log(self, args, state, control, **kwargs)
    if state.global_step == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
progress.MetricsWriter.on_log = killing
train(Recipe(**settings))
"""


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def killed_run(settings: dict, kill_at: int) -> RunFolder:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, json.dumps(settings), str(kill_at)],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    return RunFolder(settings["output_dir"])


def final(run: RunFolder) -> dict[str, torch.Tensor]:
    return load_file(run.own_adapter() / "adapter_model.safetensors")


def same(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_a_killed_run_goes_on_to_the_same_bits(settings, tmp_path):
    # 12 steps of 2 x 2 rows over 24 rows: two shuffled epochs, stopped within the first and within the second.
    settings |= {
        "max_steps": 12, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2,
        "save_strategy": "steps", "save_steps": 2, "save_total_limit": None, "lora_dropout": 0.2,
    }  # fmt: skip
    whole = train(Recipe(**settings | {"output_dir": str(tmp_path / "whole")}))
    stopped = killed_run(settings | {"output_dir": str(tmp_path / "stopped")}, kill_at=9)
    assert [p.name for p in stopped.checkpoints()] == ["checkpoint-2", "checkpoint-4", "checkpoint-6", "checkpoint-8"]
    assert not (stopped.path / "adapter_config.json").exists()
    copy = tmp_path / "early"
    shutil.copytree(stopped.path, copy)
    (copy / "checkpoint-8" / "trainer_state.json").unlink()
    cut = copy / "checkpoint-6" / "adapter_model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-100])

    console = Console(record=True, width=200)
    recipe = Recipe(**settings | {"output_dir": str(stopped.path)})
    assert same(final(train(recipe, resume=True, console=console)), final(whole))
    assert "resume: from step 8" in console.export_text()
    console = Console(record=True, width=200)
    recipe = Recipe(**settings | {"output_dir": str(copy)})
    assert same(final(train(recipe, resume=True, console=console)), final(whole))
    shown = console.export_text()
    assert "checkpoint-8 is incomplete (no trainer_state.json) and is left out" in shown
    assert "checkpoint-6 is incomplete" in shown and "resume: from step 4" in shown
    for run in (stopped, RunFolder(copy)):
        steps = [record["step"] for record in read_metrics(run.metrics_file) if "loss" in record]
        assert steps == list(range(1, 13))
        losses = {record["step"]: record["loss"] for record in read_metrics(run.metrics_file) if "loss" in record}
        expected = {r["step"]: r["loss"] for r in read_metrics(whole.metrics_file) if "loss" in r}
        assert losses == expected


@pytest.mark.parametrize(
    ("name", "spoil", "reason"),
    [
        ("adapter_model.safetensors", "remove", "no weights"),
        ("adapter_model.safetensors", "cut", "incomplete metadata"),
        ("optimizer.pt", "remove", "no optimizer.pt"),
        ("optimizer.pt", "cut", "failed finding central directory"),
        ("scheduler.pt", "cut", "failed finding central directory"),
        ("rng_state.pth", "remove", "no rng_state.pth"),
        ("trainer_state.json", "remove", "no trainer_state.json"),
        ("trainer_state.json", "cut", ""),
    ],
)
def test_a_half_written_checkpoint_is_known(checkpoints, tmp_path, name, spoil, reason):
    folders = [Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in checkpoints]
    assert newest_complete(folders) == (folders[-1], [])
    file = folders[-1] / name
    whole = file.read_bytes()
    file.unlink()
    if spoil == "cut":
        file.write_bytes(whole[: len(whole) // 2])
    found, skipped = newest_complete(folders)
    assert found == folders[-2]
    assert len(skipped) == 1 and "checkpoint-4 is incomplete" in skipped[0] and reason in skipped[0].lower()


@pytest.fixture(scope="module")
def checkpoints(tiny_llama, pairs, tmp_path_factory):
    settings = {
        "model_name_or_path": str(tiny_llama), "dataset": str(pairs), "device": "cpu", "max_steps": 4, "lora_r": 2,
        "target_modules": ["q_proj"], "save_strategy": "steps", "save_steps": 2, "method": "lora",
        "output_dir": str(tmp_path_factory.mktemp("run")),
    }  # fmt: skip
    folders = train(Recipe(**settings)).checkpoints()
    assert len(folders) == 2
    return folders


@pytest.mark.parametrize("length", [{"max_steps": 4}, {"max_steps": -1, "num_train_epochs": 0.6}])
@pytest.mark.parametrize("method", ["milora", "adalora", "full"])
def test_a_run_that_was_stopped_after_its_last_step_trains_no_further(settings, full, method, length):
    settings |= {"save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "constant", "method": method}
    settings |= full if method == "full" else {}
    run = train(Recipe(**settings | length))
    steps = [2, 4]
    assert [int(p.name.split("-")[1]) for p in run.checkpoints()] == steps
    file = run.model / "model.safetensors" if method == "full" else run.own_adapter() / "adapter_model.safetensors"
    configuration = file.with_name("config.json" if method == "full" else "adapter_config.json")
    whole, described = load_file(file), json.loads(configuration.read_text())
    records = read_metrics(run.metrics_file)
    for folder in (run.adapter, run.model):
        shutil.rmtree(folder, ignore_errors=True)
    file.unlink(missing_ok=True)
    train(Recipe(**settings | length), resume=True)
    assert same(load_file(file), whole)
    assert json.loads(configuration.read_text()) == described
    assert [int(p.name.split("-")[1]) for p in run.checkpoints()] == steps
    assert read_metrics(run.metrics_file) == records


def test_resume_needs_the_same_recipe_and_a_run(settings):
    with pytest.raises(MiloraError, match="holds no run"):
        train(Recipe(**settings), resume=True)
    train(Recipe(**settings))
    with pytest.raises(MiloraError, match=r"another recipe: learning_rate was 0.001, got 0.5"):
        train(Recipe(**settings | {"learning_rate": 0.5}), resume=True)


def test_resume_needs_the_same_rows_and_base(settings, pairs, tiny_llama, tmp_path):
    data, base = tmp_path / "rows.jsonl", tmp_path / "base"
    shutil.copy(pairs, data)
    shutil.copytree(tiny_llama, base)
    recipe = Recipe(**settings | {"dataset": str(data), "model_name_or_path": str(base)})
    run = train(recipe)
    train(recipe, resume=True)
    written = run.provenance_file.read_bytes()
    data.write_text(pairs.read_text().replace("It is", "It was"))
    with pytest.raises(MiloraError, match=r"other inputs: the rows of dataset \(data_hash was \w+, got \w+\)$"):
        train(recipe, resume=True)
    weights = load_file(base / "model.safetensors")
    save_file({name: 2 * weight for name, weight in weights.items()}, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(MiloraError, match=r"the rows of dataset \(.*; the weights of model_name_or_path \(base_fing"):
        train(recipe, resume=True)
    shutil.copy(pairs, data)
    with pytest.raises(MiloraError, match=r"other inputs: the weights of model_name_or_path \("):
        train(recipe, resume=True)
    assert run.provenance_file.read_bytes() == written
    run.provenance_file.unlink()  # as a kill before it was written leaves it
    train(recipe, resume=True)


def test_only_the_first_of_several_processes_writes_the_run_folder(settings, monkeypatch):
    waited = []
    monkeypatch.setattr("accelerate.Accelerator.wait_for_everyone", lambda self: waited.append(1))
    monkeypatch.setattr("milora.training.trainer.RunTrainer.is_world_process_zero", lambda self: False)
    run = train(Recipe(**settings))
    assert not run.holds_run and not run.provenance() and not run.metrics_file.exists()
    assert waited


def test_a_run_without_a_checkpoint_starts_again(settings):
    run = train(Recipe(**settings))
    first = final(run)
    assert same(final(train(Recipe(**settings), resume=True)), first)
    assert [r["step"] for r in read_metrics(run.metrics_file) if "loss" in r] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("method", "rate"),
    [
        ("milora", 0.1),
        ("full", 0.005),
        pytest.param("mica", 0.1, marks=pytest.mark.slow),
        pytest.param("lora", 0.05, marks=pytest.mark.slow),
    ],
)
def test_the_best_checkpoint_is_what_is_kept(settings, full, tmp_path, method, rate):
    # Validation answers in other letters than the training answers: their loss rises as training goes on.
    other = tmp_path / "other.jsonl"
    rows = [{"prompt": f"What is {i} plus {i}?\n", "completion": "%$#@&*^%$ "} for i in range(8)]
    other.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings |= {
        "method": method, "eval_dataset": str(other), "max_steps": 12, "learning_rate": rate,
        "lr_scheduler_type": "constant", "lora_dropout": 0.05,
        "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1,
        "save_total_limit": None, "load_best_model_at_end": True,
    } | (full if method == "full" else {})  # fmt: skip
    run = train(Recipe(**settings))
    losses = {r["step"]: r["eval_loss"] for r in read_metrics(run.metrics_file) if "eval_loss" in r}
    best = min(losses, key=losses.__getitem__)
    assert len(losses) == 12 and best < 12, losses
    name = "model.safetensors" if method == "full" else "adapter_model.safetensors"
    kept = load_file(run.model / name) if method == "full" else final(run)
    assert same(kept, load_file(run.path / f"checkpoint-{best}" / name))
    assert not same(kept, load_file(run.path / "checkpoint-12" / name))
    # Stopped after its last checkpoint, it ends in the best one too.
    saved = (run.model if method == "full" else run.own_adapter()) / name
    saved.unlink()
    train(Recipe(**settings), resume=True)
    assert same(load_file(saved), kept)
    assert len(run.checkpoints()) == 12
    # Moved, it does so too: the checkpoint's own record names the old place.
    moved = RunFolder(run.path.rename(tmp_path / "moved"))
    again = moved.path / saved.relative_to(run.path)
    again.unlink()
    train(Recipe(**settings | {"output_dir": str(moved.path)}), resume=True)
    assert same(load_file(again), kept)
    again.unlink()
    shutil.rmtree(moved.path / f"checkpoint-{best}")
    with pytest.raises(MiloraError, match=f"checkpoint-{best}, the best checkpoint, is not there"):
        train(Recipe(**settings | {"output_dir": str(moved.path)}), resume=True)

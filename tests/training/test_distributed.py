"""Two processes that train one model: each with the whole of it (DDP), or with parts of it (FSDP2, DeepSpeed ZeRO-3).

What they do is compared with one process that takes the same rows in each step. The commands are those that users type,
with the files in examples/.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from milora.errors import MiloraError
from milora.recipes.schema import Recipe
from milora.runs import RunFolder, read_metrics
from training import spread_methods

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "examples"
KINDS = ("ddp", "fsdp2", "zero3")
IDS = torch.arange(3, 35).view(2, 16)
STEPS, SAVED = 4, 2
TOLERANCE = {"rtol": 1e-5, "atol": 2e-6}


def accelerate_file(kind: str, folder: Path) -> Path:
    """The file in examples/ that a user would name; of ZeRO-3 with the threshold under which it cuts nothing at 0."""
    if kind == "fsdp2":
        return EXAMPLES / "accelerate_fsdp2.yaml"
    settings = json.loads((EXAMPLES / "deepspeed_zero3.json").read_text())
    settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    (folder / "zero3.json").write_text(json.dumps(settings))
    launch = yaml.safe_load((EXAMPLES / "accelerate_zero3.yaml").read_text())
    assert launch["deepspeed_config"]["deepspeed_config_file"] == "examples/deepspeed_zero3.json"
    launch["deepspeed_config"]["deepspeed_config_file"] = str(folder / "zero3.json")
    (folder / "zero3.yaml").write_text(yaml.safe_dump(launch))
    return folder / "zero3.yaml"


def command(kind: str, folder: Path, processes: int, launch: tuple[str, ...]) -> list[str]:
    script = [str(HERE / "cpu_ranks.py")]
    if processes == 0:  # what follows is the command
        return [sys.executable]
    if kind == "one":
        return [sys.executable, *script]
    if kind == "ddp":
        module = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
        return [*module, "--master_port", str(free_port()), *script]
    module = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--num_processes", str(processes)]
    file = str(accelerate_file(kind, folder))
    return [*module, "--main_process_port", str(free_port()), "--config_file", file, *launch, *script]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def launched(kind: str, notes: Path, arguments: list[str], processes: int, *launch: str) -> tuple[int, str]:
    """Run a command on so many processes, with a cache of its own; returns its exit code and what it has said."""
    if kind == "zero3" and find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed (DS_BUILD_OPS=0 pip install deepspeed)")
    notes.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu",
        "MILORA_TEST_NOTES": str(notes), "MILORA_CACHE": str(notes / "cache"),
    }  # fmt: skip
    output = notes / "output.txt"
    with output.open("w") as file:
        started = subprocess.Popen(
            [*command(kind, notes, processes, launch), *arguments],
            env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            code = started.wait(timeout=300)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)
    return code, output.read_text()


def run(kind: str, notes: Path, arguments: list[str], processes: int = 2) -> None:
    code, said = launched(kind, notes, arguments, processes)
    assert code == 0, said[-6000:]


@pytest.fixture(scope="module")
def keys(tiny_llama, pairs) -> dict:
    """Of a recipe: 4 steps of 8 rows, 24 rows, a checkpoint in the middle."""
    return {
        "model_name_or_path": str(tiny_llama), "dataset": str(pairs), "method": "milora", "lora_r": 4, "seed": 7,
        "lora_dropout": 0.0, "target_modules": ["q_proj", "v_proj", "down_proj"], "dtype": "float32",
        "max_steps": STEPS, "learning_rate": 1e-2, "warmup_steps": 0, "logging_steps": 1, "save_strategy": "steps",
        "save_steps": SAVED, "eval_strategy": "no", "val_set_size": 0, "load_best_model_at_end": False,
    }  # fmt: skip


def train(kind: str, keys: dict, folder: Path, *flags: str, processes: int = 2) -> Path:
    """A run in the folder, beside it the notes."""
    rows = 8 if kind == "one" else 8 // processes
    recipe = folder.with_suffix(".yaml")
    recipe.parent.mkdir(parents=True, exist_ok=True)
    recipe.write_text(yaml.safe_dump(keys | {"output_dir": str(folder), "per_device_train_batch_size": rows}))
    run(kind, folder.with_name(folder.name + "-notes"), ["train", str(recipe), "--debug", *flags], processes)
    return folder


@pytest.fixture(scope="module")
def made(keys, tmp_path_factory):
    """Runs of each kind, made when they are first asked for."""
    runs: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in runs:
            runs[kind] = train(kind, keys, tmp_path_factory.mktemp(kind) / "run")
        return runs[kind]

    return make


def notes(folder: Path) -> list[list[dict]]:
    """What each rank has noted."""
    files = sorted(folder.with_name(folder.name + "-notes").glob("rank*.jsonl"))
    return [[json.loads(line) for line in file.read_text().splitlines()] for file in files]


def noted(folder: Path, key: str) -> list[list]:
    return [[record[key] for record in rank if key in record] for rank in notes(folder)]


def losses(folder: Path) -> dict[int, float]:
    return {r["step"]: r["loss"] for r in read_metrics(RunFolder(folder).metrics_file) if "loss" in r}


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_start_from_the_same_factors_and_decompose_each_weight_once(made, kind):
    ranks, whole = noted(made(kind), "factors"), noted(made("one"), "factors")
    assert len(ranks) == 2 and len(whole) == 1
    assert len(whole[0][0]) == 12
    assert ranks[0] == ranks[1] == whole[0]  # L0 and R0 of six layers, to the last bit
    computed = [weight for rank in noted(made(kind), "computed") for weight in rank]
    assert sorted(computed) == sorted(noted(made("one"), "computed")[0])
    assert len(computed) == len(set(computed)) == 6


def test_each_way_of_spreading_a_model_is_really_taken(made):
    fsdp = [{r["elsewhere"]: r["targets"] for r in rank if "elsewhere" in r} for rank in notes(made("fsdp2"))]
    assert fsdp == [{False: 6}, {True: 0}]  # the second rank has shapes, and hands nothing in
    assert noted(made("ddp"), "elsewhere") == [[False], [False]]
    assert noted(made("zero3"), "zero3") == [[6], [6]]  # parts of all six weights from the moment they are read


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_that_of_one_process(made, kind):
    ours, whole = losses(made(kind)), losses(made("one"))
    assert sorted(ours) == list(range(1, STEPS + 1))
    assert ours == pytest.approx(whole, rel=1e-6)
    assert whole[STEPS] < whole[1] - 0.05
    ours, whole = adapter(made(kind) / "adapter"), adapter(made("one") / "adapter")
    assert ours.keys() == whole.keys() and len(ours) == 24
    torch.testing.assert_close(ours, whole, **TOLERANCE)
    assert max(t.abs().max() for n, t in whole.items() if "_dL" in n or "_dR" in n) > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_whole_and_is_what_was_trained(made, kind, tiny_llama):
    folder = made(kind)
    written = {p.relative_to(folder).as_posix() for p in folder.iterdir()}
    assert written == {p.name for p in made("one").iterdir()}
    checkpoint = folder / f"checkpoint-{SAVED}"
    random_states = {"rng_state_0.pth", "rng_state_1.pth"}
    other = {p.name for p in (made("one") / checkpoint.name).iterdir()} - {"rng_state.pth"}
    assert {p.name for p in checkpoint.iterdir()} == other | random_states
    shapes = {name: t.shape for name, t in adapter(made("one") / "adapter").items()}
    assert {name: t.shape for name, t in adapter(checkpoint).items()} == shapes
    trained = [torch.load(file) for file in sorted(folder.with_name("run-notes").glob("rank*.pt"))]
    assert len(trained) == 2
    torch.testing.assert_close(trained[0], trained[1], **TOLERANCE)
    for saved in (folder / f"checkpoint-{STEPS}", folder / "adapter", folder):
        base = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
        with torch.no_grad():
            logits = PeftModel.from_pretrained(base, str(saved)).eval()(input_ids=IDS).logits
        torch.testing.assert_close(logits, trained[0], rtol=1e-4, atol=1e-5)
    assert RunFolder(folder).provenance()["processes"] == 2


@pytest.mark.parametrize(
    ("before", "after"),
    [("one", "ddp"), ("one", "fsdp2"), ("one", "zero3"), ("ddp", "one"), ("fsdp2", "one"), ("zero3", "one")]
    + [("zero3", "fsdp2"), ("fsdp2", "zero3")],
)  # fmt: skip
def test_a_run_goes_on_on_another_number_of_processes(made, keys, tmp_path, before, after):
    folder = stopped(made(before), tmp_path / "run")
    train(after, keys, folder, "--resume")
    assert "resume: from step 2" in folder.with_name("run-notes").joinpath("output.txt").read_text()
    assert losses(folder) == pytest.approx(losses(made("one")), rel=1e-6)
    torch.testing.assert_close(adapter(folder / "adapter"), adapter(made("one") / "adapter"), **TOLERANCE)


def stopped(whole: Path, folder: Path) -> Path:
    """A copy of a run as a kill after its first checkpoint leaves it."""
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / f"checkpoint-{STEPS}")
    shutil.rmtree(folder / "adapter")
    (folder / "adapter_model.safetensors").unlink()
    assert [p.name for p in RunFolder(folder).checkpoints()] == [f"checkpoint-{SAVED}"]
    return folder


def test_rows_of_a_step_stay_the_same_on_another_number_of_processes(made, keys, tmp_path, monkeypatch):
    folder = RunFolder(stopped(made("one"), tmp_path / "run"))
    recipe = {**keys, "output_dir": str(folder.path), "device": None}
    folder.check(Recipe(**recipe, per_device_train_batch_size=8), resume=True)
    folder.check(Recipe(**recipe, per_device_train_batch_size=2, gradient_accumulation_steps=4), resume=True)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    folder.check(Recipe(**recipe, per_device_train_batch_size=4), resume=True)
    with pytest.raises(MiloraError, match=r"was 1 x 8 x 1, got 2 x 8 x 1, allowed the same product"):
        folder.check(Recipe(**recipe, per_device_train_batch_size=8), resume=True)


@pytest.mark.parametrize("kind", ["ddp", "fsdp2", "zero3"])
def test_a_matched_rate_is_that_of_one_process(keys, tmp_path, kind):
    matched = keys | {"learning_rate": {"match": "pissa", "at": 1e-2}, "max_steps": 1, "save_steps": 1}
    alone, together = (train(k, matched, tmp_path / k / "run") for k in ("one", kind))
    rates = [RunFolder(run).provenance()["learning_rate"]["resolved"] for run in (alone, together)]
    assert rates[0] > 1.5e-2 and rates[1] == pytest.approx(rates[0], rel=1e-6)
    assert losses(together)[1] == pytest.approx(losses(alone)[1], rel=1e-5)
    torch.testing.assert_close(adapter(together), adapter(alone), **TOLERANCE)


@pytest.mark.parametrize("kind", ["fsdp2", "zero3"])
def test_full_fine_tuning_with_tied_weights_and_the_best_checkpoint(keys, tiny_llama, tmp_path, kind):
    from transformers import LlamaConfig, LlamaForCausalLM

    base = Path(shutil.copytree(tiny_llama, tmp_path / "tied"))
    config = LlamaConfig.from_pretrained(base, tie_word_embeddings=True)
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(base)
    settings = {**keys, "model_name_or_path": str(base), "method": "full", "learning_rate": 1e-3}
    for key in ("lora_r", "lora_dropout", "target_modules"):
        del settings[key]
    settings |= {"val_set_size": 8, "eval_strategy": "steps", "eval_steps": SAVED, "load_best_model_at_end": True}
    # The learning rate is far too large from the second half on: the checkpoint in the middle is the best.
    settings |= {"lr_scheduler_type": "constant", "learning_rate": 0.1, "max_grad_norm": 0.0}
    ours = train(kind, settings, tmp_path / "ours")
    whole = train("one", settings, tmp_path / "whole")
    assert losses(ours) == pytest.approx(losses(whole), rel=1e-4)
    state = json.loads((ours / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
    best = Path(state["best_model_checkpoint"])
    saved, kept = (load_file(folder / "model.safetensors") for folder in (best, ours / "model"))
    assert "lm_head.weight" not in saved and saved.keys() == kept.keys()
    assert all(torch.equal(saved[name], kept[name]) for name in saved)


@pytest.mark.parametrize("kind", ["fsdp2", "zero3"])
def test_every_method_starts_and_steps_as_on_a_model_that_is_not_spread(kind, tiny_llama, tmp_path):
    run(kind, tmp_path, [str(HERE / "spread_methods.py"), str(tiny_llama), str(tmp_path)])
    ranks = [torch.load(tmp_path / f"spread{rank}.pt") for rank in (0, 1)]
    if kind == "fsdp2":
        refused = "pattern: got 'random' with fsdp_cpu_ram_efficient_loading: true, allowed false there"
        assert [rank.pop("refusal") for rank in ranks] == [refused, refused]
    assert ranks[0].keys() == ranks[1].keys() == spread_methods.VARIANTS.keys()
    for name, settings in spread_methods.VARIANTS.items():
        first, second, alone = ranks[0][name], ranks[1][name], spread_methods.alone(str(tiny_llama), settings)
        assert second["elsewhere"] is (kind == "fsdp2" and name != spread_methods.SCATTERED), name
        assert torch.equal(first["start"], alone["start"]) and torch.equal(second["start"], alone["start"]), name
        if not settings.get("as_published"):
            assert torch.equal(first["start"], alone["base"]), name
        assert second["state"] == {} and first["state"].keys() == alone["state"].keys(), name
        torch.testing.assert_close(first["state"], alone["state"], rtol=1e-4, atol=1e-6, msg=name)


def test_fsdp_on_a_cpu_is_refused_where_accelerate_would_fall_back_to_ddp_in_silence(keys, tmp_path):
    recipe = tmp_path / "run.yaml"
    recipe.write_text(yaml.safe_dump(keys | {"output_dir": str(tmp_path / "run"), "device": "cpu"}))
    launch = command("fsdp2", tmp_path, 2, ())[1:-1]
    code, said = launched("fsdp2", tmp_path / "notes", [*launch, "-m", "milora.cli", "train", str(recipe)], 0)
    assert code != 0 and "distributed_type: got FSDP on a CPU, allowed on GPUs" in said
    assert not (tmp_path / "run").exists()


def test_fsdp_of_the_first_version_is_refused(keys, tmp_path):
    recipe = tmp_path / "run.yaml"
    recipe.write_text(yaml.safe_dump(keys | {"output_dir": str(tmp_path / "run")}))
    first = ("--fsdp_version", "1", "--fsdp_cpu_ram_efficient_loading", "false", "--fsdp_sync_module_states", "false")
    code, said = launched("fsdp2", tmp_path / "notes", ["train", str(recipe)], 2, *first)
    assert code != 0
    assert "fsdp_version: got 1, allowed 2 (fsdp_config of accelerate's file)" in said
    assert not (tmp_path / "run").exists()

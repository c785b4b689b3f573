"""A run from recipe to run folder, for a spectral method, PEFT's LoRA and full fine-tuning."""

import json
import sys

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from milora.errors import MiloraError
from milora.recipes.schema import Recipe
from milora.runs import RunFolder, read_metrics
from milora.training.train import train


def logits(model, tokens=range(3, 40)):
    with torch.no_grad():
        return model.eval()(torch.tensor([list(tokens)])).logits


@pytest.mark.parametrize(("method", "method_settings"), [("milora", {}), ("lora", {}), ("milora", {"magnitude": True})])
def test_a_run_leaves_an_adapter_that_plain_peft_loads(settings, method, method_settings):
    from peft import PeftModel

    run = train(Recipe(**settings | {"method": method, "method_settings": method_settings}))
    base = AutoModelForCausalLM.from_pretrained(settings["model_name_or_path"])
    before = logits(base)
    loaded = PeftModel.from_pretrained(base, run.path)
    assert type(loaded.peft_config["default"]).__name__ == "LoraConfig"
    assert not torch.equal(logits(loaded), before)
    assert run.adapter.is_dir() == (method == "milora")
    if method == "milora":
        again = AutoModelForCausalLM.from_pretrained(settings["model_name_or_path"])
        native = PeftModel.from_pretrained(again, run.adapter)
        torch.testing.assert_close(logits(native), logits(loaded), rtol=0, atol=2e-5)


def test_full_fine_tuning_leaves_a_model(settings, full):
    run = train(Recipe(**settings | full))
    tuned = AutoModelForCausalLM.from_pretrained(run.model)
    base = AutoModelForCausalLM.from_pretrained(settings["model_name_or_path"])
    assert not torch.equal(logits(tuned), logits(base))
    assert not (run.path / "adapter_config.json").exists()
    assert run.provenance()["trainable_parameters"] == sum(p.numel() for p in base.parameters())


def test_full_fine_tuning_of_a_bfloat16_checkpoint_trains_in_float32(settings, full, tiny_llama, tmp_path):
    from milora.runs.tuned import load_tuned

    stored = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.bfloat16)
    stored.save_pretrained(tmp_path / "bf16")
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(tmp_path / "bf16")
    small = {"model_name_or_path": str(tmp_path / "bf16"), "dtype": "auto", "learning_rate": 1e-5, "bf16": False}
    run = train(Recipe(**settings | small | full))
    before, after = stored.lm_head.weight.float(), AutoModelForCausalLM.from_pretrained(run.model).lm_head.weight
    assert after.dtype == torch.float32
    # A step of 1e-5 is lost in bfloat16 wherever a weight is over 4e-3.
    assert (after != before).float().mean() > 0.9
    tuned = load_tuned(run.path)
    assert tuned.model.dtype == tuned.base_model.dtype == torch.float32
    run = train(Recipe(**settings | small), overwrite=True)
    assert load_tuned(run.path).model.dtype == torch.bfloat16


def test_the_run_folder_tells_what_was_done(settings):
    console = Console(record=True, width=150, force_terminal=False)
    run = train(Recipe(**settings), console=console)
    records = read_metrics(run.metrics_file)
    assert [record["step"] for record in records if "loss" in record] == [1, 2, 3, 4, 5, 6]
    assert all({"step", "epoch", "time"} <= record.keys() for record in records)
    assert run.recipe() == Recipe(**settings)
    provenance = run.provenance()
    # (out + in) r for q (64, 64), v (32, 64) and down (64, 112) in two layers
    assert provenance["trainable_parameters"] == 2 * 4 * (128 + 96 + 176)
    assert provenance["data"]["dataset"]["rows"] == 24
    assert provenance["seeds"] == {"seed": 7}
    assert len(provenance["data_hash"]) == len(provenance["base_fingerprint"]) == 64
    card = run.card_file.read_text()
    assert "milora" in card and "provenance" in card.lower()
    shown = console.export_text()
    for words in ("steps", "train loss", "trainable numbers", "3,200 of", "folder"):
        assert words in shown, words
    assert {p.name for p in run.path.iterdir()} == {
        "recipe.yaml", "provenance.json", "metrics.jsonl", "README.md", "adapter",
        "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip


def test_one_logged_loss_is_shown_once(settings):
    console = Console(record=True, width=150, force_terminal=False)
    run = train(Recipe(**settings | {"max_steps": 1}), console=console)
    (loss,) = [record["loss"] for record in read_metrics(run.metrics_file) if "loss" in record]
    row = next(line for line in console.export_text().splitlines() if "train loss" in line)
    assert row.count(f"{loss:.4f}") == 1 and "at last" not in row


def test_a_quiet_run_prints_nothing(settings, capfd, recwarn):
    train(Recipe(**settings | {"save_strategy": "steps", "save_steps": 3}))
    assert [str(warning.message) for warning in recwarn] == []
    written = capfd.readouterr()
    assert written.out == "" and written.err == ""


def test_loss_on_all_trains_the_prompt_too(settings):
    answers = train(Recipe(**settings)).provenance()["data"]["dataset"]
    everything = train(Recipe(**settings | {"loss_on": "all"}), overwrite=True).provenance()["data"]["dataset"]
    assert everything["trained_tokens"] == everything["tokens"] - everything["rows"]
    assert answers["trained_tokens"] < everything["trained_tokens"] / 2


def test_the_same_seed_gives_the_same_weights_and_another_does_not(settings):
    def weights(**changes):
        run = train(Recipe(**settings | changes), overwrite=True)
        return load_file(run.path / "adapter_model.safetensors")

    first, again, other = weights(), weights(), weights(seed=8)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_validation_loss_is_measured_and_shown(settings):
    console = Console(record=True, width=150)
    run = train(Recipe(**settings | {"val_set_size": 6}), console=console)
    losses = [record["eval_loss"] for record in read_metrics(run.metrics_file) if "eval_loss" in record]
    assert len(losses) == 1
    assert f"{losses[0]:.4f}" in console.export_text()


def test_a_given_set_is_used_for_validation(settings, pairs):
    run = train(Recipe(**settings | {"eval_dataset": str(pairs)}))
    assert any("eval_loss" in record for record in read_metrics(run.metrics_file))
    assert run.provenance()["data"]["eval_dataset"]["rows"] == 24


def test_the_slice_of_the_training_rows_does_not_cut_the_validation_set(settings, pairs):
    sliced = settings | {"eval_dataset": str(pairs), "dataset_split": "train[4:12]"}
    rows = train(Recipe(**sliced)).provenance()["data"]
    assert (rows["dataset"]["rows"], rows["eval_dataset"]["rows"]) == (8, 24)
    rows = train(Recipe(**sliced | {"eval_split": "train[:5]"}), overwrite=True).provenance()["data"]
    assert (rows["dataset"]["rows"], rows["eval_dataset"]["rows"]) == (8, 5)


def test_the_first_validation_rows_that_are_kept_are_taken(settings, pairs, tiny_llama):
    from milora.training.data import load_data

    tokenizer, quiet = AutoTokenizer.from_pretrained(tiny_llama), Console(quiet=True)
    keys = settings | {"eval_dataset": str(pairs), "min_length": 34}
    every = load_data(Recipe(**keys), tokenizer, quiet).validation
    three = load_data(Recipe(**keys | {"eval_dataset_limit": 3}), tokenizer, quiet).validation
    assert every is not None and three is not None
    assert 3 < len(every) < 24 and min(len(ids) for ids in every["input_ids"]) >= 34
    assert three["input_ids"] == every["input_ids"][:3]
    assert len(load_data(Recipe(**keys | {"eval_dataset_limit": 99}), tokenizer, quiet).validation) == len(every)


def test_tensorboard_is_written_only_when_asked(settings):
    pytest.importorskip("tensorboard")
    assert not (train(Recipe(**settings)).path / "runs").exists()
    run = train(Recipe(**settings | {"report_to": "tensorboard"}), overwrite=True)
    assert list((run.path / "runs").rglob("events.*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_name_or_path": "/no/such/folder"}, "model folder"),
        ({"dataset": "/no/such/file.jsonl"}, "no/such/file"),
        ({"max_length": 10}, "no token to train on"),
        ({"lora_r": 1000}, "1000"),
        ({"target_modules": ["no_such_module"]}, "no_such_module"),
        ({"load_best_model_at_end": True}, "no validation rows"),
        ({"lr_scheduler_type": "no_such_schedule"}, "no_such_schedule"),
        ({"packing": True}, "packing"),
        ({"val_set_size": 24}, "val_set_size"),
        ({"method": "lora", "target_modules": ["lm_head"]}, "lm_head"),
    ],
)
def test_a_refused_run_leaves_nothing(settings, changes, message):
    folder = RunFolder(settings["output_dir"]).path
    with pytest.raises(MiloraError, match=message) as refused:
        train(Recipe(**settings | changes))
    assert len(str(refused.value).splitlines()) == 1
    assert not folder.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "lora", "method_settings": {"init_lora_weights": "pissa_niter_2"}}, "cannot be made again"),
        ({"target_modules": ["embed_tokens"], "method_settings": {"magnitude": True}}, "magnitude: got true with"),
        ({"target_modules": ["embed_tokens"], "method": "svf"}, "save_bases: got false with the embedding"),
        ({"target_modules": ["embed_tokens"], "method": "vera"}, "VERA adapter: "),
        ({"quantization": "torchao-int8", "method": "svf", "method_settings": {"decompose_from": "dequantised"}},
         "save_bases: got false on dequantised weights"),
    ],
)  # fmt: skip
def test_what_could_not_leave_is_refused_before_it_is_trained(settings, changes, message):
    with pytest.raises(MiloraError, match=message):
        train(Recipe(**settings | changes))
    assert not (RunFolder(settings["output_dir"]).path / "metrics.jsonl").exists()


@pytest.mark.slow
def test_a_model_out_of_a_gguf_file_trains(settings, smollm2):
    from milora.models.smollm2 import _FILE, _package_folder

    source = {"model_name_or_path": str(_package_folder()), "gguf_file": _FILE}
    run = train(Recipe(**settings | source | {"max_steps": 1, "target_modules": ["layers.0.self_attn.q_proj"]}))
    assert run.own_adapter().is_dir()


@pytest.mark.parametrize("method", ["milora", "full"])
def test_numbers_that_are_none_after_the_last_logged_step_are_not_saved(settings, full, method):
    broken = {"learning_rate": 1e30, "max_grad_norm": 0.0, "logging_steps": 10, "max_steps": 6}
    keys = settings | (full if method == "full" else {"method": method, "lora_dropout": 0.0}) | broken
    with pytest.raises(MiloraError, match="holds NaN or Inf at the end, nothing was saved"):
        train(Recipe(**keys))
    run = RunFolder(settings["output_dir"])
    assert run.holds_run and not list(run.path.rglob("*.safetensors"))


def test_a_run_that_another_process_started_meanwhile_stays(settings, monkeypatch):
    run = RunFolder(settings["output_dir"])
    training = sys.modules[train.__module__]
    build = training._build

    def slowly(*arguments):
        built = build(*arguments)
        RunFolder(settings["output_dir"]).create(Recipe(**settings))
        return built

    monkeypatch.setattr(training, "_build", slowly)
    with pytest.raises(MiloraError, match="holds a run"):
        train(Recipe(**settings))
    assert run.holds_run


def test_a_home_folder_is_written_out(settings, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    settings |= {"output_dir": "~/runs/a", "max_steps": 1, "save_strategy": "steps", "save_steps": 1}
    train(Recipe(**settings))
    assert {"recipe.yaml", "checkpoint-1", "adapter_config.json"} <= {
        p.name for p in (tmp_path / "runs" / "a").iterdir()
    }
    assert not (tmp_path / "~").exists()


def test_a_folder_that_the_trainer_made_goes_when_the_run_is_refused(settings, monkeypatch):
    from milora.training.trainer import RunTrainer

    folder = RunFolder(settings["output_dir"]).path

    def refuse(self, callback):
        assert folder.is_dir()
        raise MiloraError("refused late")

    monkeypatch.setattr(RunTrainer, "remove_callback", refuse)
    with pytest.raises(MiloraError, match="refused late"):
        train(Recipe(**settings))
    assert not folder.exists()


def test_a_refused_overwrite_keeps_the_old_run(settings):
    run = train(Recipe(**settings))
    before = {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()}
    with pytest.raises(MiloraError, match="holds a run"):
        train(Recipe(**settings))
    with pytest.raises(MiloraError, match="lm_head"):
        train(Recipe(**settings | {"method": "lora", "target_modules": ["lm_head"]}), overwrite=True)
    assert {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()} == before


def test_a_loss_that_is_no_number_stops_the_run(settings):
    wild = {"learning_rate": 1e30, "method": "full", "max_grad_norm": 0.0, "max_steps": 50}
    with pytest.raises(MiloraError, match=r"the loss is (nan|inf) after \d+ steps"):
        train(Recipe(**settings | wild))


def test_a_full_disk_keeps_the_old_adapter(settings, monkeypatch):
    import errno

    import milora.training.saving as saving

    run = train(Recipe(**settings))
    old = (run.path / "adapter_model.safetensors").read_bytes()

    def full(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(saving, "export_lora", full)
    model = torch.nn.Module()
    model.save_pretrained = lambda folder, **_: folder.mkdir()
    with pytest.raises(MiloraError, match="no space left"):
        saving.save_result(model, None, Recipe(**settings), run)
    assert (run.path / "adapter_model.safetensors").read_bytes() == old
    assert not [p.name for p in run.path.iterdir() if p.name.startswith(".")]


def test_a_full_disk_at_a_checkpoint_is_one_line_and_leaves_no_half_checkpoint(settings, monkeypatch):
    from milora.training.trainer import RunTrainer

    def full(self, folder):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")

    monkeypatch.setattr(RunTrainer, "_save_rng_state", full)
    with pytest.raises(MiloraError, match="no space left on the disk while saving"):
        train(Recipe(**settings | {"save_strategy": "steps", "save_steps": 3}))
    assert not list(RunFolder(settings["output_dir"]).path.glob("checkpoint-*"))


def test_metrics_are_json_lines(settings):
    run = train(Recipe(**settings))
    lines = run.metrics_file.read_text().splitlines()
    assert len(lines) >= 7
    for line in lines:
        json.loads(line)

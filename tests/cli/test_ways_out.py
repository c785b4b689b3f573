"""`milora export`, `merge` and `import` from the command line to the files, on a random two-layer model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM

from adapters.steps import adapt, train_steps
from cli.calls import refused
from milora.adapters import agreement
from milora.cli.app import main

IDS = torch.randint(3, 250, (2, 12), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def adapter(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    model = adapt(AutoModelForCausalLM.from_pretrained(tiny_llama), "milora")
    train_steps(model, IDS)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def call(tiny_llama: Path, capsys: pytest.CaptureFixture[str]):
    """Call a verb with the tiny base; its JSON."""

    def run(verb: str, *arguments: Any) -> Any:
        capsys.readouterr()
        code = main([verb, *(str(a) for a in arguments), "--model_name_or_path", str(tiny_llama), "--json"])
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return json.loads(printed.out)

    return run


def test_lora_by_default_checked_by_loading_it(adapter: Path, tmp_path: Path, call):
    told = call("export", adapter, "--output", tmp_path / "lora")
    assert (told["to"], told["rank"], told["relative_error"], told["layers"]) == ("lora", 16, 0.0, [])
    assert told["check"]["largest"] < 2e-6 < told["check"]["moved"]
    assert call("export", adapter, "--output", tmp_path / "unchecked", "--no-check")["check"] is None


def test_a_rank_with_the_error_of_each_layer_and_the_kl(adapter: Path, tmp_path: Path, call, tiny_llama, capsys):
    (tmp_path / "text.txt").write_text("The sea is wide and the sky is high. " * 20)
    told = {}
    for rank in (8, 2):
        arguments = ["--rank", rank, "--text", tmp_path / "text.txt", "--max_tokens", 200]
        told[rank] = call("export", adapter, "--output", tmp_path / f"r{rank}", *arguments)
        assert len(told[rank]["layers"]) == 14 and told[rank]["tokens"] == 199
        assert all(0 < layer["relative_error"] < 1 for layer in told[rank]["layers"])
    assert 0 < told[8]["relative_error"] < told[2]["relative_error"] < 1
    assert 0 < told[8]["kl"] < told[2]["kl"]
    exact = call("export", adapter, "--output", tmp_path / "exact", *arguments[2:])
    assert exact["kl"] < told[8]["kl"] / 10
    base = ["--model_name_or_path", str(tiny_llama)]
    assert main(["export", str(adapter), "--output", str(tmp_path / "shown"), "--rank", "8", *base]) == 0
    shown = capsys.readouterr().out
    assert shown.count("_proj ") == 14 and "relative Frobenius error over all layers: 0." in shown
    assert "reloaded: logits differ by at most" in shown


def test_gguf_and_merged(adapter: Path, tmp_path: Path, call):
    pytest.importorskip("gguf")
    told = call("export", adapter, "--output", tmp_path / "a.gguf", "--to", "gguf-lora")
    assert told["check"]["largest"] < 2e-6 and (tmp_path / "a.gguf").read_bytes()[:4] == b"GGUF"
    told = call("export", adapter, "--output", tmp_path / "m", "--to", "merged", "--max_shard_size", "100KB")
    assert told["check"]["largest"] < 2e-6 and told["in_memory"] == ""
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 1
    call("merge", adapter, "--output", tmp_path / "m2", "--no-check")
    assert (tmp_path / "m2" / "model.safetensors").is_file()


@pytest.mark.parametrize("verb", ["export", "merge", "import", "compose"])
def test_what_is_read_is_not_overwritten(adapter: Path, tiny_llama: Path, capsys, verb):
    before = {path.name: path.read_bytes() for path in adapter.iterdir()}
    folders = [adapter, adapter] if verb == "compose" else [adapter]
    told = refused(
        capsys, verb, *folders, *(["--weights", "1,1"] if verb == "compose" else []),
        "--model_name_or_path", tiny_llama, "--output", adapter, "--overwrite",
    )  # fmt: skip
    assert "which is read; --overwrite would delete it" in told
    assert {path.name: path.read_bytes() for path in adapter.iterdir()} == before


def test_a_text_is_measured_where_merge_is_told_one(adapter: Path, tiny_llama: Path, tmp_path: Path, call, capsys):
    (tmp_path / "text.txt").write_text("The sea is wide and the sky is high. " * 20)
    told = call("merge", adapter, "--output", tmp_path / "merged", "--text", tmp_path / "text.txt")
    assert 0 <= told["kl"] < 1e-6 and told["tokens"] > 100
    onto = ["--onto", tiny_llama, "--text", tmp_path / "text.txt", "--output", tmp_path / "onto"]
    told = refused(capsys, "merge", adapter, "--model_name_or_path", tiny_llama, *onto)
    assert "--onto: got --text, --check or --high_precision" in told and not (tmp_path / "onto").exists()


def test_an_adapter_that_changes_no_weight_is_not_merged(tiny_llama: Path, tmp_path: Path, capsys):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    get_peft_model(model, PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")).save_pretrained(
        tmp_path / "p"
    )
    base = ["--model_name_or_path", tiny_llama, "--output", tmp_path / "m"]
    assert "got PROMPT_TUNING, which changes no weight" in refused(capsys, "merge", tmp_path / "p", *base)
    (tmp_path / "p" / "adapter_config.json").write_text("[]")
    assert "is no adapter configuration" in refused(capsys, "merge", tmp_path / "p", *base)
    assert "got nothere, which is no folder here" in refused(capsys, "merge", "nothere", *base)


def test_what_was_trained_by_peft_comes_in(tiny_llama: Path, tmp_path: Path, call):
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_llama),
        LoraConfig(r=4, init_lora_weights="pissa", target_modules=["q_proj", "up_proj"]),
    )
    train_steps(model, IDS)
    model.save_pretrained(tmp_path / "pissa")
    told = call("import", tmp_path / "pissa", "--output", tmp_path / "ours")
    assert (told["method"], told["trains"]) == ("pissa", "L and R")
    assert told["check"]["largest"] < 3e-6 < told["check"]["moved"] and 0 < told["start_distance"] < 1
    assert call("export", tmp_path / "ours", "--output", tmp_path / "lora")["rank"] == 8


def test_a_base_that_is_not_at_hand_is_not_checked_unless_asked_for(adapter: Path, tmp_path: Path, capsys, monkeypatch):
    base = ["--model_name_or_path", "nobody/nothing"]
    assert main(["export", str(adapter), *base, "--output", str(tmp_path / "lora")]) == 0
    assert "not checked: " in capsys.readouterr().out
    assert main(["export", str(adapter), *base, "--output", str(tmp_path / "other"), "--check"]) == 2
    monkeypatch.setattr(agreement, "fits_in_memory", lambda *_, **__: False)
    assert main(["export", str(adapter), *base, "--output", str(tmp_path / "large")]) == 0
    assert "does not fit this machine's memory" in capsys.readouterr().out


def test_another_base_is_refused_before_anything_is_written(adapter: Path, tiny_llama: Path, tmp_path: Path, capsys):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] += 1
    model.save_pretrained(tmp_path / "other")
    arguments = [
        "export",
        str(adapter),
        "--model_name_or_path",
        str(tmp_path / "other"),
        "--output",
        str(tmp_path / "out"),
    ]
    assert main(arguments) == 2
    assert "made on a base with fingerprint" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert main([*arguments, "--force"]) == 0


def test_what_a_named_program_would_refuse_is_an_error(tiny_llama: Path, tmp_path: Path, capsys):
    model = adapt(AutoModelForCausalLM.from_pretrained(tiny_llama), "milora", target_modules=["q_proj"],
                  modules_to_save=["lm_head"])  # fmt: skip
    model.save_pretrained(tmp_path / "own")
    base = ["--model_name_or_path", str(tiny_llama), "--output", str(tmp_path / "out")]
    for arguments, said in (
        (["--for", "vllm"], "vllm would refuse it: modules_to_save (lm_head); use --to merged"),
        (["--for", "ollama"], "for: got 'ollama', allowed vllm, llama.cpp"),
        (["--to", "merged", "--rank", "4"], "got --rank or --for, allowed --rank with lora and gguf-lora"),
        (["--to", "gguf-lora", "--for", "vllm"], "--for with lora"),
        (["--to", "gguf-lora"], "lm_head.weight is trained in full; use --to merged"),
        (["--rank", "0"], "rank: got 0, allowed a whole number from 1 on"),
    ):
        capsys.readouterr()
        assert main(["export", str(tmp_path / "own"), *base, *arguments]) == 2
        assert said in " ".join(capsys.readouterr().err.split())
        assert not (tmp_path / "out").exists()
    assert main(["export", str(tmp_path / "own"), *base, "--to", "merged"]) == 0

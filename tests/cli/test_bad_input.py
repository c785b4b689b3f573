"""What users get wrong, each through the command line: one clear line, exit code 2, and nothing half-written."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from milora.cli.app import main

ROWS = [{"prompt": f"The colour of stone {i} is", "completion": f" shade {i}."} for i in range(8)]


@pytest.fixture
def model(tiny_llama, tmp_path) -> Path:
    """A copy of the tiny model that a test may damage."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


@pytest.fixture
def run(model, tmp_path, capfd):
    """Train with flags over sensible ones, and return (exit code, error text)."""

    def call(*flags: str, rows: list | str = ROWS) -> tuple[int, str]:
        data = tmp_path / "data.jsonl"
        data.write_text(rows if isinstance(rows, str) else "".join(json.dumps(r) + "\n" for r in rows))
        arguments = ["--model_name_or_path", str(model), "--dataset", str(data), "--output_dir", str(tmp_path / "run")]
        small = ["--max_steps", "1", "--lora_r", "4", "--max_length", "64", "--save_strategy", "no"]
        capfd.readouterr()
        code = main(["--quiet", "train", *arguments, *small, *flags])
        return code, capfd.readouterr().err

    return call


def no_folder(model):
    shutil.rmtree(model)


def no_weights(model):
    (model / "model.safetensors").unlink()


def pickled(model):
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    no_weights(model)


def truncated(model):
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def with_nan(model):
    weights = load_file(model / "model.safetensors")
    weights["model.layers.1.self_attn.v_proj.weight"][0, 0] = float("nan")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


def refused(answer: tuple[int, str], *said: str) -> None:
    """Exit code 2, and one line on stderr that says it."""
    code, error = answer
    lines = [line for line in error.splitlines() if line.startswith("error:")]
    assert code == 2, error
    assert len(lines) == 1, error
    assert "Traceback" not in error
    for words in said:
        assert words in lines[0]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (no_folder, "does not exist"),
        (no_weights, "holds no weights"),
        (pickled, "pickled weights"),
        (truncated, "broken or truncated"),
        (with_nan, "model.layers.1.self_attn.v_proj.weight holds NaN"),
    ],
)
def test_a_model_that_cannot_be_used(run, model, tmp_path, damage, said):
    damage(model)
    refused(run(), said)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--lora_r", "65"], "got 65 for model.layers.0.self_attn.q_proj"),
        (["--target_modules", "[qproj]"], "target_modules: 'qproj' matches no module of the model"),
        (["--rank_pattern", "{nosuch: 4}"], "rank_pattern: 'nosuch' matches no module of the model"),
        (["--alpha_pattern", "{nosuch: 4}"], "alpha_pattern: 'nosuch' matches no module of the model"),
        (["--method", "miolra"], "did you mean 'milora'?"),
        (["--method_settings", "{componets_seed: 1}"], "milora has no 'componets_seed'"),
        (["--learning_rate", "fast"], "learning_rate: got 'fast', allowed float"),
        (["--learnig_rate", "1e-4"], "did you mean --learning_rate?"),
        (
            ["--overlong", "error", "--max_length", "10"],
            "8 of 8 rows are too long, first row 1 of the rows drawn: got 3",
        ),
    ],
)
def test_a_request_that_cannot_be_met(run, tmp_path, flags, said):
    refused(run(*flags), said)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("", "data.jsonl: has no rows"),
        ([*ROWS, {"prompt": "no completion here"}], "row 9"),
        ('{"prompt": "a", "completion": "b"}\n{"prompt": ', "data.jsonl, line 2, column "),
        ([{"prompt": "word " * 100, "completion": " end"}], "no token to train on"),
    ],
)
def test_data_that_cannot_be_used(run, tmp_path, rows, said):
    refused(run(rows=rows), said)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("lorar: 4", "unknown key 'lorar' (did you mean 'lora_r'?)"),
        ("lora_r: four", "lora_r: got 'four', allowed int"),
        ("lora_r: 4\nlora_r: 8", "key 'lora_r' stands twice"),
        ("learning_rate: .inf", "learning_rate: got inf, allowed a finite number"),
        ("method: mica\nmethod_settings: {target_r: 3}", "mica has no 'target_r'"),
    ],
)
def test_a_recipe_with_a_mistake(tmp_path, capfd, line, said):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model_name_or_path: m\ndataset: d.jsonl\noutput_dir: o\n{line}\n")
    refused((main(["train", str(recipe), "--dry-run"]), capfd.readouterr().err), said)


def test_a_folder_that_holds_a_run_and_an_adapter_for_another_base(run, model, tmp_path, capfd):
    assert run()[0] == 0
    before = (tmp_path / "run" / "adapter_model.safetensors").read_bytes()
    refused(run(), "--overwrite", "--resume")
    assert (tmp_path / "run" / "adapter_model.safetensors").read_bytes() == before

    weights = load_file(model / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] += 1
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    merge = ["merge", str(tmp_path / "run"), "--model_name_or_path", str(model), "--output", str(tmp_path / "merged")]
    refused((main(merge), capfd.readouterr().err), "this base has", "--force")
    assert not (tmp_path / "merged").exists()
    assert main([*merge, "--force"]) == 0
    assert (tmp_path / "merged" / "model.safetensors").is_file()

    export = ["export", str(tmp_path / "run"), "--model_name_or_path", str(model), "--output", str(tmp_path / "run")]
    refused((main(export), capfd.readouterr().err), "--overwrite")

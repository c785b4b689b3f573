"""`milora compose` from the command line: given weights, and weights found on validation rows."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from adapters.steps import adapt, train_steps
from milora.cli.app import main

IDS = torch.randint(3, 250, (2, 12), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def experts(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folders = []
    for i in range(2):
        folders.append(tmp_path_factory.mktemp(f"expert{i}"))
        model = adapt(AutoModelForCausalLM.from_pretrained(tiny_llama), "svf")
        train_steps(model, IDS + i, lr=0.05)
        model.save_pretrained(folders[-1])
    return folders


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "few.jsonl"
    lines = [{"prompt": f"the sea is {w}", "completion": " and wide"} for w in ("deep", "blue", "cold", "far")]
    file.write_text("\n".join(json.dumps(line) for line in lines))
    return file


def call(capsys: pytest.CaptureFixture[str], *arguments: Any) -> Any:
    capsys.readouterr()
    code = main(["compose", *(str(a) for a in arguments), "--json"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return json.loads(printed.out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    capsys.readouterr()
    assert main(["compose", *(str(a) for a in arguments)]) == 2
    return capsys.readouterr().err


def test_given_weights(experts, tiny_llama, tmp_path, capsys):
    said = call(capsys, *experts, "--weights", "0.5, 0.25", "--output", tmp_path / "out")
    assert said["weights"] == [0.5, 0.25]
    assert (said["how"], said["method"], said["rank"]) == ("sum", "svf", None)
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert main(["compose", *map(str, experts), "--weights", "1 1", "--output", str(tmp_path / "again")]) == 0
    assert "written as svf, an exact sum" in capsys.readouterr().out


def test_weights_found_on_validation_rows(experts, tiny_llama, rows, tmp_path, capsys):
    found = call(
        capsys, *experts, "--validation", rows, "--iterations", 3, "--model_name_or_path", tiny_llama,
        "--output", tmp_path / "out",
    )  # fmt: skip
    assert len(found["weights"]) == 2 and all(0 <= a <= 1 for a in found["weights"])
    assert found["search"]["tried"] == 1 + 3 * 31
    history = found["search"]["history"]
    assert history == sorted(history) and found["search"]["score"] == history[-1] < 0


def test_what_is_refused(experts, tiny_llama, rows, tmp_path, capsys):
    output = tmp_path / "out"
    base = ("--model_name_or_path", tiny_llama)
    assert "got both or neither of --weights and --validation" in refused(capsys, *experts, "--output", output)
    assert "got 'a b', allowed numbers" in refused(capsys, *experts, "--weights", "a b", "--output", output)
    missing = refused(capsys, *experts, "--validation", rows, "--output", output)
    assert "model_name_or_path: got none, needed to find weights" in missing
    magnitude = tmp_path / "magnitude"
    adapt(AutoModelForCausalLM.from_pretrained(tiny_llama), "svf", magnitude=True).save_pretrained(magnitude)
    searched = ("--validation", rows, "--iterations", 10**9, *base)  # refused before the search, or this never ends
    assert "has a magnitude" in refused(capsys, experts[0], magnitude, *searched, "--output", output)
    test_split = rows.rename(tmp_path / "gsm8k_test.jsonl")
    said = refused(capsys, *experts, "--validation", test_split, *base, "--output", output)
    assert "allowed rows that no result is reported on" in said
    assert not output.exists()

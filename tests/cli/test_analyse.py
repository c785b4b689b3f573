"""milora analyse: a run, an adapter, two whole models; what is written, printed and refused."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from cli.calls import call, refused
from milora.cli.app import main
from milora.runs import RunFolder


@pytest.fixture(scope="module")
def runs(tiny_llama: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    for method in ("milora", "full"):
        common = ["--model_name_or_path", tiny_llama, "--dataset", rows, "--output_dir", folder / method]
        more = ["--method", method, "--max_steps", 2, "--report_to", "none", "--dtype", "float32", "--device", "cpu"]
        more += ["--lora_r", 4, "--learning_rate", 1e-3, "--per_device_train_batch_size", 2]
        assert main([str(a) for a in ["train", *common, *more, "--quiet"]]) == 0
    return {method: folder / method for method in ("milora", "full")}


def test_a_run_keeps_its_analysis(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]):
    run = RunFolder(runs["milora"])
    printed = call(capsys, "analyse", run.path, "--device", "cpu")
    written = json.loads((run.path / "analysis.json").read_text())
    assert written == printed == run.results()["analysis"]
    assert written["r"] == 4 and len(written["modules"]) == 14
    assert "| phi top 4 | phi bottom 4 |" in run.card_file.read_text(encoding="utf-8")
    assert set(written["modules"][0]) == {
        "module", "layer", "type", "shape", "norm_W", "norm_dW", "relative", "directions", "phi", "projection",
        "spectrum", "effective_rank", "intruders",
    }  # fmt: skip
    assert written["summary"]["phi"]["left"]["bottom"] > 0.3 > 0.2 > written["summary"]["phi"]["left"]["top"]
    assert "--overwrite replaces it" in refused(capsys, "analyse", run.path)
    again = call(capsys, "analyse", run.path, "--r", 2, "--seed", 7, "--overwrite", "--device", "cpu")
    assert (again["r"], again["seed"]) == (2, 7) and json.loads(run.analysis_file.read_text()) == again


def test_tables_for_people(runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["analyse", str(runs["milora"]), "--output", str(tmp_path / "a.json"), "--layers"]) == 0
    shown = capsys.readouterr().out
    lines = [line.split() for line in shown.splitlines() if line]
    record = json.loads((tmp_path / "a.json").read_text())
    q = record["summary"]["by_type"]["q_proj"]
    assert f"{q['norm_dW']:.3g}" in next(line for line in lines if line[0] == "q_proj")
    assert "phi at r = 4" in shown and [line[0] for line in lines].count("all") == 2
    assert [line[:2] for line in lines if line[0] in ("0", "1")][:2] == [["0", "7"], ["1", "7"]]


def test_an_adapters_folder_is_measured_without_a_run(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]):
    adapter = runs["milora"] / "adapter"
    before = sorted(p.name for p in adapter.iterdir())
    record = call(capsys, "analyse", adapter, "--device", "cpu")
    assert sorted(p.name for p in adapter.iterdir()) == before
    exported = call(capsys, "analyse", runs["milora"], "--output", adapter.parent / "x.json", "--device", "cpu")
    assert record["summary"]["norm_dW"] == exported["summary"]["norm_dW"] > 0


def test_full_fine_tuning_and_two_models_are_the_same_measurement(
    runs: dict[str, Path], tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = call(capsys, "analyse", runs["full"], "--r", 4, "--device", "cpu")
    two = ["--model_name_or_path", tiny_llama, "--tuned", runs["full"] / "model", "--r", 4, "--device", "cpu"]
    assert call(capsys, "analyse", *two, "--output", tmp_path / "two.json") == run
    base, tuned = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in (tiny_llama, two[3]))
    for record in run["modules"]:
        W, other = (model.get_submodule(record["module"]).weight.detach() for model in (base, tuned))
        assert record["norm_dW"] == pytest.approx(float((other - W).norm()), rel=1e-5)
    chosen = call(capsys, "analyse", *two, "--targets", "up_proj")
    assert list(chosen["summary"]["by_type"]) == ["up_proj"]


def test_wrong_calls_are_one_line(
    runs: dict[str, Path], tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert "allowed a run or an adapter, or --tuned" in refused(capsys, "analyse")
    assert "allowed a run or an adapter, or --tuned" in refused(
        capsys, "analyse", runs["full"], "--tuned", "x", "--overwrite"
    )
    assert "--model_name_or_path: got none" in refused(capsys, "analyse", "--tuned", tiny_llama)
    assert "does not exist" in refused(capsys, "analyse", "/nowhere/at/all")
    said = refused(capsys, "analyse", runs["milora"], "--r", 0, "--output", tmp_path / "never-written.json")
    assert "r: got 0" in said and not (tmp_path / "never-written.json").exists()

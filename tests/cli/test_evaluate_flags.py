"""What `milora eval` reads by itself, where its results go, and what it says besides."""

import json
import shutil
from pathlib import Path

import pytest

from milora.cli.app import main
from milora.cli.evaluate import _pairs
from milora.errors import MiloraError


@pytest.fixture(scope="module")
def trained(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    (folder / "rows.jsonl").write_text("".join(json.dumps({"prompt": f"{i} ", "completion": "x"}) + "\n" for i in "ab"))
    flags = ["--max_steps", "1", "--lora_r", "4", "--save_strategy", "no", "--dataset", str(folder / "rows.jsonl")]
    paths = ["--model_name_or_path", str(tiny_llama), "--output_dir", str(folder / "run")]
    assert main(["--quiet", "train", *paths, *flags]) == 0
    return folder / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Rows of two tasks; the last question is longer than the tiny model's context of 512."""
    folder = tmp_path / "rows"
    folder.mkdir()
    asked = [{"question": text, "choices": ["a", "b"], "answer": 0} for text in ("One?", "Two?", "x" * 600)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    judged = [{"instruction": f"Is {i} even?", "answer": "true"} for i in range(2)]
    (folder / "boolq.jsonl").write_text("".join(json.dumps(row) + "\n" for row in judged))
    return folder


def call(*arguments: object) -> int:
    return main(["eval", *(str(a) for a in arguments)])


def test_generation_settings_are_values_by_name():
    assert _pairs("num_beams=4,do_sample=false,temperature=0.1") == {
        "num_beams": 4,
        "do_sample": False,
        "temperature": 0.1,
    }
    assert _pairs(None) is None


@pytest.mark.parametrize("text", ["num_beams", "num_beams=4,", "4=num_beams"])
def test_what_is_no_pair_is_named(text):
    with pytest.raises(MiloraError, match=r"--gen_kwargs: got .*allowed name=value pairs"):
        _pairs(text)


def test_a_run_keeps_the_results_of_one_task_beside_anothers(run: Path, rows: Path, capsys, monkeypatch):
    told = ["--data_dir", rows, "--max_gen_toks", 2]
    assert call(run, "--tasks", "milora_questions", *told, "--quiet") == 0
    first = json.loads((run / "eval" / "results.json").read_text())
    assert call(run, "--tasks", "milora_boolq", *told, "--quiet") == 0
    both = json.loads((run / "eval" / "results.json").read_text())
    assert both["comparison"][: len(first["comparison"])] == first["comparison"]
    assert {row["task"] for row in both["comparison"]} == {"milora_questions", "milora_boolq"}
    assert both["tuned"]["settings"]["milora_questions"]["tasks"] == ["milora_questions"]
    card = (run / "README.md").read_text(encoding="utf-8")
    assert "milora_questions" in card and "milora_boolq" in card

    assert call(run, "--tasks", "milora_boolq", *told, "--limit", 1, "--overwrite", "--quiet") == 0
    kept = json.loads((run / "eval" / "results.json").read_text())["comparison"]
    assert {row["task"]: row["n"] for row in kept} == {"milora_questions": 3, "milora_boolq": 1}

    def loading(*_: object, **__: object) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr("milora.runs.tuned.load_tuned", loading)
    capsys.readouterr()
    assert call(run, "--tasks", "milora_questions,milora_piqa", *told) == 2
    assert "holds results of milora_questions; set overwrite" in capsys.readouterr().err


def test_a_models_results_and_completions_are_kept_where_asked(tiny_llama: Path, rows: Path, tmp_path: Path, capsys):
    told = [tiny_llama, "--tasks", "milora_questions", "--data_dir", rows, "--output", tmp_path / "kept"]
    assert call(*told, "--quiet") == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "kept" / "results.json")
    assert {p.name for p in (tmp_path / "kept").iterdir()} == {"results.json", "milora_questions.jsonl"}
    assert len((tmp_path / "kept" / "milora_questions.jsonl").read_text().splitlines()) == 3
    results = json.loads((tmp_path / "kept" / "results.json").read_text())
    assert {row["n"] for row in results["scores"]} == {3} and "completions" not in results

    assert call(*told) == 2
    assert "exists, allowed a new folder, or --overwrite" in capsys.readouterr().err
    assert call(*told, "--limit", 1, "--overwrite", "--quiet") == 0
    assert len((tmp_path / "kept" / "milora_questions.jsonl").read_text().splitlines()) == 1
    told[-1] = rows
    assert call(*told, "--overwrite") == 2
    assert "holds no results" in capsys.readouterr().err and (rows / "questions.jsonl").exists()


def test_an_adapters_results_are_kept_where_asked(run: Path, rows: Path, tmp_path: Path):
    told = ["--tasks", "milora_questions", "--data_dir", rows, "--output", tmp_path / "kept", "--quiet"]
    assert call(run / "adapter", *told) == 0
    names = {"results.json", "milora_questions.base.jsonl", "milora_questions.tuned.jsonl"}
    assert {p.name for p in (tmp_path / "kept").iterdir()} == names
    assert not (run / "eval").exists()


def test_prompts_that_lost_their_beginning_are_said(tiny_llama: Path, rows: Path, capsys):
    assert call(tiny_llama, "--tasks", "milora_questions", "--data_dir", rows) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "milora_questions: in 1 of 3 rows the prompt does not fit the model's context" in said
    assert call(tiny_llama, "--tasks", "milora_questions", "--data_dir", rows, "--limit", 2) == 0
    assert "does not fit" not in capsys.readouterr().err


@pytest.mark.parametrize(("flag", "said"), [("--block", "block: got 0"), ("--max_tokens", "max_tokens: got 0")])
def test_zero_is_a_number(run: Path, tmp_path: Path, capsys, flag: str, said: str):
    (tmp_path / "text.txt").write_text("The sea is wide and the sky is high. " * 20)
    capsys.readouterr()
    assert main(["forgetting", str(run), "--text", str(tmp_path / "text.txt"), flag, "0"]) == 2
    assert said in capsys.readouterr().err

"""`milora judge`, from the command line to the files."""

import json
from pathlib import Path

import pytest

from milora.cli.app import main


@pytest.fixture
def files(tmp_path: Path) -> Path:
    rows = [{"instruction": f"i{n}", "output": f"mine {n}", "preference": p} for n, p in enumerate([2, 1, 2, None])]
    (tmp_path / "judged.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    reference = [{"instruction": f"i{n}", "output": f"theirs {n}", "generator": "theirs"} for n in range(4)]
    (tmp_path / "reference.json").write_text(json.dumps(reference))
    return tmp_path


def call(files: Path, *more: object) -> int:
    given = [files / "judged.jsonl", "--judge", f"recorded:{files / 'judged.jsonl'}", "--reference",
             files / "reference.json", *more]  # fmt: skip
    return main(["judge", *(str(g) for g in given)])


def test_recorded_judgements_become_a_win_rate(files, capsys):
    assert call(files, "--output", files / "out", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((files / "out" / "win_rate.json").read_text())
    assert (printed["win_rate"], printed["n_total"], printed["n_failed"]) == (pytest.approx(200 / 3), 3, 1)
    assert call(files, "--output", files / "out") == 2
    assert "holds a win rate" in capsys.readouterr().err
    assert call(files, "--output", files / "two", "--limit", 1, "--generator", "tuned", "--quiet") == 0
    assert capsys.readouterr().out.strip().endswith("win_rate.json")
    assert json.loads((files / "two" / "win_rate.json").read_text())["generator"] == "tuned"


def test_a_runs_outputs_are_found_in_it(files, capsys):
    from milora.runs.folder import MARK

    run = files / "run"
    (run / "eval").mkdir(parents=True)
    (run / "recipe.yaml").write_text(MARK)
    given = ["judge", str(run), "--judge", f"recorded:{files / 'judged.jsonl'}"]
    given += ["--reference", str(files / "reference.json")]
    assert main(given) == 2
    assert "has no outputs of milora_alpaca_eval: milora eval" in capsys.readouterr().err
    rows = [{"target": f"i{n}", "completion": f" mine {n}\n"} for n in range(4)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (run / "eval" / "milora_alpaca_eval.tuned.jsonl").write_text(text)
    assert main(given) == 0
    assert (run / "eval" / "judged" / "tuned" / "win_rate.json").is_file()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "--output: got none"),
        (["--output", "o", "--limit", "0"], "limit: got 0"),
        (["--output", "o", "--judge", "http://127.0.0.1:1/v1"], "judge_model: got none"),
        (["--output", "o", "--judge", "recorded:nowhere.jsonl"], "judge: no such file"),
    ],
)
def test_wrong_calls_are_one_line(files, capsys, monkeypatch, more, said):
    monkeypatch.chdir(files)
    assert call(files, *more) == 2
    assert said in capsys.readouterr().err
    assert not (files / "o").exists()

"""milora compare on the command line, as far as nothing is trained."""

import json
from pathlib import Path

import pytest

from milora.cli.app import main


def test_ls_lists_the_grids(capsys: pytest.CaptureFixture[str]):
    assert main(["--json", "compare", "ls"]) == 0
    found = {entry["name"]: entry["description"] for entry in json.loads(capsys.readouterr().out)}
    assert {"paper-check", "tiny-check"} <= set(found) and all(found.values())


def test_dry_run_lists_the_runs_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    flags = ["--output", str(tmp_path / "out"), "--data_dir", str(tmp_path), "--set", "base.max_steps=48"]
    assert main(["--quiet", "compare", "paper-check", *flags, "--dry-run"]) == 0
    names = capsys.readouterr().out.split()
    assert len(names) == 2 * 4 * 3
    assert names[0] == "lora@rescaled-r32-lr0.0003-s0" and names[-1] == "random@as_is-r32-lr0.0003-s2"
    assert main(["--json", "compare", "paper-check", *flags, "--seeds", "5", "--dry-run"]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert len(runs) == 8 and {run["seed"] for run in runs} == {5}
    assert runs[0]["dataset"] == str(tmp_path / "math/gsm8k_train.jsonl.gz")
    assert (runs[0]["lora_alpha"], runs[1]["lora_alpha"]) == (64, 32)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--set", "base.lora_rank=3"], "unknown recipe key 'lora_rank'"),
        (["--set", "nothing"], "allowed KEY=VALUE"),
        (["--set", "measure.at=[64]", "--set", "base.max_steps=48"], "measure.at"),
        (["--seeds", "a"], "seeds.0: got 'a'"),
    ],
)
def test_wrong_calls_are_one_line(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert main(["compare", "paper-check", *flags, "--dry-run"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and message in lines[0]

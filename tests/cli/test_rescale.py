"""`milora rescale` from the command line."""

import json
from pathlib import Path
from typing import Any

import pytest

from milora.cli.app import main


def call(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([str(a) for a in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_it_says_what_it_did_and_that_the_logits_are_the_same(tiny_llama: Path, tmp_path: Path, capsys):
    out = tmp_path / "out"
    code, printed, _ = call(capsys, "rescale", tiny_llama, "--output", out, "--scale", 4, "--json")
    record = json.loads(printed)
    assert code == 0 and record["folder"] == str(out)
    assert record["divisors"] == {"q_proj": 4, "k_proj": 4, "v_proj": 4, "gate_proj": 16, "up_proj": 4, "down_proj": 4}
    assert record["difference"] == {"logit": 0, "kl": 0}
    assert record["std"]["q_proj"]["after"] == record["std"]["q_proj"]["before"] / 4
    code, printed, _ = call(capsys, "rescale", tiny_llama, "--output", out, "--to_std", 0.005, "--overwrite")
    assert code == 0 and "largest difference of a logit 0, KL 0" in printed and "gate_proj" in printed
    code, printed, _ = call(capsys, "rescale", tiny_llama, "--output", tmp_path / "b", "--no-check", "--json")
    assert code == 0 and json.loads(printed)["difference"] is None
    assert json.loads(printed)["divisors"]["gate_proj"] == 64


def test_wrong_calls_are_one_line(tiny_llama: Path, tmp_path: Path, capsys):
    out = tmp_path / "out"
    for flags, why in (
        (["--scale", 3], "scale: got 3, allowed a power of two"),
        (["--to_std", 0.02, "--scale", 8], "to_std: got it with scale or gate_scale, allowed alone"),
    ):
        code, _, said = call(capsys, "rescale", tiny_llama, "--output", out, *flags)
        assert code == 2 and why in said and not out.exists()
    code, _, said = call(capsys, "rescale", tmp_path / "absent", "--output", out)
    assert code == 2 and "does not exist" in said

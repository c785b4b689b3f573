"""The implementation check: the orders that the starts of the methods alone bring about, on a tiny random model.

Random weights show the same subspaces and the same order of amplification as trained ones. So this tests the code of
the methods, the training and the analysis together, and says nothing about what the methods claim.
"""

from pathlib import Path

import pytest

from milora.cli.app import main


@pytest.mark.slow
def test_tiny_check(tiny_llama: Path, sums: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    where = ["--model_name_or_path", str(tiny_llama), "--dataset", str(sums / "rows.jsonl")]
    command = ["compare", "tiny-check", *where, "--text", str(sums / "text.txt"), "--output", str(tmp_path / "out")]
    assert main(command) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert printed.count("passed") == 12 and "failed" not in printed
    # The same runs judged by what cannot be: the command fails, and no run is done again.
    before = (tmp_path / "out/runs/lora-r8-lr0.0003-s0/adapter_model.safetensors").stat().st_mtime_ns
    wrong = "[{name: no, value: amplification(pissa) / amplification(milora), limit: 1.0}]"
    assert main([*command, "--set", f"checks={wrong}"]) == 1
    assert "1 of 1 checks failed: no" in capsys.readouterr().err
    after = (tmp_path / "out/runs/lora-r8-lr0.0003-s0/adapter_model.safetensors").stat().st_mtime_ns
    assert before == after

"""What the README tells people to type works, on a small model in place of the one it names."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from milora.cli.app import app, main

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_python_blocks_run(tiny_llama: Path, capsys: pytest.CaptureFixture[str]):
    found = blocks("python")
    assert len(found) == 1 and MODEL in found[0]
    exec(found[0].replace(MODEL, str(tiny_llama)), {})
    assert "trainable params" in capsys.readouterr().out


def test_commands_exist_with_their_flags(capsys: pytest.CaptureFixture[str]):
    commands = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("milora ")]
    verbs = [shlex.split(command)[1] for command in commands]
    assert verbs == ["train", "eval", "forgetting", "export"]
    for command, verb in zip(commands, verbs, strict=True):
        arguments = shlex.split(command)[1:]
        if verb == "train":
            assert main([*arguments, "--dry-run"]) == 0, capsys.readouterr().err
            continue
        help_text = CliRunner().invoke(app, [verb, "--help"], terminal_width=200).stdout
        flags = [word for word in arguments if word.startswith("--")]
        assert flags and not [flag for flag in flags if flag not in help_text]


def test_make_targets_exist():
    makefile = (Path(__file__).resolve().parents[1] / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"`?make (\w+)`?", README)
    assert {"demo", "test", "check"} <= set(targets)
    assert not [target for target in targets if f"\n{target}:" not in makefile]

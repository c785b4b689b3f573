"""What the README tells people to type works, on a small model and small files in place of those it names."""

import json
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
    assert verbs == ["train", "eval", "forgetting", "export", "train", "merge"]
    for command, verb in zip(commands, verbs, strict=True):
        arguments = shlex.split(command)[1:]
        if verb == "train":
            assert main([*arguments, "--dry-run"]) == 0, capsys.readouterr().err
            continue
        help_text = CliRunner().invoke(app, [verb, "--help"], terminal_width=200).stdout
        flags = [word for word in arguments if word.startswith("--")]
        assert flags and not [flag for flag in flags if flag not in help_text]


@pytest.mark.slow
def test_commands_run(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MILORA_TASK_DATA", str(tmp_path))
    rows = [{"instruction": f"Add {i} and 1.", "input": "", "output": str(i + 1)} for i in range(6)]
    (tmp_path / "my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = [{"question": f"What is {i}?", "choices": ["a", "b"], "answer": i % 2} for i in range(3)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    (tmp_path / "known.txt").write_text("The sea is wide and the sky is high. " * 30)
    instead = {MODEL: str(tiny_llama), "arc_easy": "milora_questions", "wikitext-103": "known.txt"}
    commands = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("milora ")]
    assert len(commands) == 6
    assert all(any(named in command for command in commands) for named in instead)
    for command in commands:
        assert main([instead.get(word, word) for word in shlex.split(command)[1:]]) == 0, capsys.readouterr().err
    for file in ("out/eval/results.json", "out/forgetting.json", "out-lora/adapter_model.safetensors",
                 "out-4bit/adapter_config.json", "out-merged/model.safetensors"):  # fmt: skip
        assert (tmp_path / file).is_file()
    assert "milora_questions" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_make_targets_exist():
    makefile = (Path(__file__).resolve().parents[1] / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"`?make (\w+)`?", README)
    assert {"demo", "test", "check"} <= set(targets)
    assert not [target for target in targets if f"\n{target}:" not in makefile]


def test_examples_are_listed_with_the_commands_that_start_them():
    folder = Path(__file__).resolve().parents[1] / "examples"
    listed = re.search(r"```text\n(examples/.*?)```", README, flags=re.DOTALL)
    assert listed
    names = [line.split()[0] for line in listed[1].splitlines()[1:]]
    assert names == sorted(path.name for path in folder.iterdir() if path.is_file())
    for name in ("accelerate_fsdp2.yaml", "accelerate_zero3.yaml"):
        line = f"accelerate launch --config_file examples/{name} -m milora.cli train recipe.yaml"
        assert line in README and f"#     {line}\n" in (folder / name).read_text(encoding="utf-8")

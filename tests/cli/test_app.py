"""Exit codes, and what goes to stdout and to stderr."""

import json
import subprocess
import sys
import time
import warnings

import pytest
from typer.testing import CliRunner

import milora
from milora.cli import app as command_line
from milora.cli.app import app, main
from milora.errors import MiloraError

VERBS = [
    "train", "eval", "forgetting", "export", "merge", "decompose", "spectrum", "methods", "recipes", "demo", "cache",
]  # fmt: skip


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch):
    """Make every verb raise an error."""

    def with_error(error: BaseException) -> None:
        def run(*_: object) -> None:
            raise error

        monkeypatch.setattr(command_line, "_run", run)

    return with_error


def test_help_lists_the_verbs_and_is_quick():
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "milora.cli", "--help"], capture_output=True, text=True, timeout=60)
    took = time.perf_counter() - started
    assert done.returncode == 0
    assert [verb for verb in VERBS if f"  {verb} " in done.stdout] == VERBS
    assert took < 5  # torch, transformers and PEFT alone take longer than this on two busy cores


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from milora.cli.app import main; main(['--help']); "
        "sys.exit(','.join({'torch', 'transformers', 'peft', 'trl', 'datasets', 'lm_eval'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr.strip() == ""


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_a_help(verb: str):
    result = CliRunner().invoke(app, [verb, "--help"])
    assert result.exit_code == 0
    assert f"milora {verb}" in result.stdout.replace("root", "milora")


def test_version(capsys: pytest.CaptureFixture[str]):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == milora.__version__


def test_no_verb_shows_the_help(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 0
    assert "Usage: milora" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "No such command 'trian'"),
        (["eval"], "Missing argument"),
        (["methods", "--lora_r", "many"], "Invalid value"),
        (["train", "--lora-rank", "3"], "--lora-rank: unknown flag, did you mean --lora_r?"),
        (["train", "--lr", "3"], "did you mean --learning_rate?"),
        (["train", "a.yaml", "b.yaml"], "allowed one recipe"),
        (["train", "absent.yaml"], "no such file"),
        (["recipes", "cat", "absent"], "got 'absent', allowed"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_code_2(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]):
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ") and said in printed.err
    assert len(printed.err.splitlines()) == 1


def test_the_console_script_exits_with_the_code():
    command = [sys.executable, "-m", "milora.cli", "recipes", "cat", "absent"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("error: recipe: got 'absent'")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (MiloraError("lora_r: got 0,\nallowed 1 or more"), 2, "error: lora_r: got 0, allowed 1 or more"),
        (RuntimeError("it broke\nbadly"), 1, "error: RuntimeError: it broke badly (--debug shows where)"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
    ],
)
def test_errors_become_one_line(failing, capsys: pytest.CaptureFixture[str], error, code: int, said: str):
    failing(error)
    assert main(["methods"]) == code
    assert capsys.readouterr().err.splitlines() == [said]


def test_debug_shows_the_traceback(failing, capsys: pytest.CaptureFixture[str]):
    failing(RuntimeError("it broke"))
    assert main(["methods", "--debug"]) == 1
    printed = capsys.readouterr().err
    assert "Traceback (most recent call last)" in printed and "in run" in printed


def test_json_says_errors_to_machines_too(failing, capsys: pytest.CaptureFixture[str]):
    failing(MiloraError("wrong"))
    assert main(["methods", "--json"]) == 2
    assert json.loads(capsys.readouterr().out) == {"error": "wrong"}


@pytest.mark.parametrize("arguments", [["--json", "recipes", "ls"], ["recipes", "ls", "--json"]])
def test_json_is_alone_on_stdout(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(arguments) == 0
    record = json.loads(capsys.readouterr().out)
    assert len(record) >= 3 and all(entry["name"] for entry in record)


def test_quiet_prints_names_only(capsys: pytest.CaptureFixture[str]):
    assert main(["recipes", "ls", "--quiet"]) == 0
    names = capsys.readouterr().out.split()
    assert len(names) >= 3 and "recipe" not in names


def test_a_warning_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def warn(arguments: list[str], output: object) -> int:
        warnings.warn("the sea is rising", stacklevel=1)
        return 0

    monkeypatch.setattr("milora.cli.app._run", warn)
    assert main(["methods"]) == 0
    assert capsys.readouterr().err == "warning: the sea is rising\n"

"""The command line called as a test wants it: for its JSON, or for the line with which it refuses."""

import json
from typing import Any

import pytest

from milora.cli.app import main


def call(capsys: pytest.CaptureFixture[str], *arguments: Any) -> Any:
    """What `milora ARGUMENTS --json` prints."""
    capsys.readouterr()
    code = main([*(str(a) for a in arguments), "--json"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return json.loads(printed.out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """The error of a wrong call."""
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == 2
    return next(line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))

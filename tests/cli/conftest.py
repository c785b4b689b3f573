"""Rows to train on, for the verbs that need some."""

import json
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = [json.dumps({"prompt": f"{i} and {i} is ", "completion": f"{2 * i}."}) for i in range(12)]
    file.write_text("\n".join(lines) + "\n")
    return file

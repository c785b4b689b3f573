"""What builds the documentation, for its tests."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def hooks() -> Iterator[Any]:
    """The module that mkdocs runs, docs/hooks/build_site.py."""
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    folder = str(ROOT / "docs" / "hooks")
    sys.path.insert(0, folder)
    try:
        yield importlib.import_module("build_site")
    finally:
        sys.path.remove(folder)


@pytest.fixture(scope="session")
def pages(hooks: Any) -> dict[str, str]:
    """Every page by its path below docs, as Markdown with all that is generated filled in, the notebook's aside."""
    written = {
        p.relative_to(ROOT / "docs").as_posix(): p.read_text(encoding="utf-8") for p in (ROOT / "docs").rglob("*.md")
    }
    raw = written | {path: text for path, text in hooks.generated_pages().items() if "generated: notebook" not in text}
    return {path: hooks.filled(text) for path, text in raw.items()}

"""The data-set formats, from their files: each opens with its source, a real row and its template."""

import importlib
from typing import Any

from markdown_tables import anchor, code, prose, table


def columns() -> str:
    """Formats and the columns by which they are told apart."""
    from milora.data import FORMATS

    rows = [[anchor(name), ", ".join(map(code, form.columns)), "yes" if form.prompt else "no"]
            for name, form in FORMATS.items()]  # fmt: skip
    return table(["format", "columns", "lays a template around the prompt"], rows)


def formats() -> str:
    """Each format as its file describes it."""
    from milora.data import FORMATS

    return "\n".join(_section(name, form) for name, form in FORMATS.items())


def _section(name: str, form: Any) -> str:
    module = importlib.import_module(form.read.__module__)
    return f"### {name}\n\n{prose((module.__doc__ or '').strip())}\n"

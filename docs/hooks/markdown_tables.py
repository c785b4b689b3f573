"""Markdown tables, and plain text made safe for Markdown."""

import itertools
import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from markdown.extensions.toc import slugify

ENTITIES = str.maketrans({"*": "&#42;", "<": "&lt;", ">": "&gt;", "$": "&#36;", "_": "&#95;"})


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], right: Sequence[int] = ()) -> str:
    """A Markdown table.

    Args:
        header: names of the columns.
        rows: their values; None is an empty cell.
        right: columns of numbers, aligned to the right.
    """
    rule = ["---:" if column in right else "---" for column in range(len(header))]
    lines = [header, rule, *([cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def cell(value: Any) -> str:
    """A value as one cell: no line breaks, no bars of its own."""
    return "" if value is None else str(value).replace("|", "\\|").replace("\n", " ")


def code(text: Any) -> str:
    """Code inside a line."""
    return f"`{text}`"


def anchor(heading: str) -> str:
    """A link to a heading of the same page."""
    return f"[{plain(heading)}](#{slugify(heading, '-')})"


def fence(text: str, language: str = "") -> str:
    """A block of code."""
    return f"```{language}\n{text.rstrip()}\n```\n"


def prose(docstring: str) -> str:
    """A docstring as Markdown: indented paragraphs are code, and in lines of text only `code` is markup."""
    paragraphs = re.split(r"\n\s*\n", docstring.strip("\n"))
    parts: list[str] = []
    for indented, run in itertools.groupby(paragraphs, key=lambda text: text.startswith("  ")):
        text = "\n\n".join(run)
        parts.append(fence(textwrap.dedent(text), "text") if indented else "\n".join(map(plain, text.splitlines())))
    return "\n\n".join(parts)


def plain(line: str) -> str:
    """A line of text in which asterisks, angle brackets and dollars mean themselves, code in backticks aside."""
    parts = re.split(r"(``.+?``|`[^`]*`)", line)
    return "".join(part if part.startswith("`") else part.translate(ENTITIES) for part in parts)

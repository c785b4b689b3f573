"""What a data-set format is: the columns that show it, and how one row becomes an example.

An example is what TRL's SFTTrainer takes, one of

    {"prompt": str, "completion": str}
    {"messages": [{"role": str, "content": str}, ...]}
    {"text": str}
    {"prompts": [str, ...], "completions": [str, ...], "image": str | None}

Neither prompt nor completion holds the end-of-sequence token: the trainer appends the tokeniser's to the
completion (or to the text), so that one data set serves every tokeniser. `completion` is appended to
`prompt` directly, with nothing between them. `prompts` and `completions` are the rounds of a conversation, each
completion closed as one alone is; `image` is the path of the picture that it is about, in a folder named beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]
Example = dict[str, Any]


class RowError(Exception):
    """One row does not fit its format; the loader adds the file and the row's number."""


class EmptyError(RowError):
    """A row has its fields, and one that must hold text is empty."""


@dataclass(frozen=True)
class Turn:
    """An instruction with its answer, before a prompt template is laid around it."""

    instruction: str
    input: str
    output: str


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        name: the name in recipes (`dataset_format`), and of its template (`prompt_template`).
        columns: the fields that every row has; a data set whose first row has them is taken for this format.
        read: one row to a Turn (a template is laid around it) or to an Example (used as it is).
        conversations: `read` gives messages.
        by_name: taken only where a recipe names it, for its columns are another format's too.
        prompt: (instruction, input) -> prompt: the template, for formats whose `read` gives a Turn.
    """

    name: str
    columns: tuple[str, ...]
    read: Callable[[Row], Turn | Example]
    prompt: Callable[[str, str], str] | None = None
    by_name: bool = False
    conversations: bool = False


def text(row: Row, field: str, *, empty: bool = False) -> str:
    """The string in a field.

    Raises:
        RowError: the field is missing or is not a string.
        EmptyError: it is blank, and `empty` does not allow that.
    """
    if field not in row:
        raise RowError(f"field {field!r} is missing")
    value = row[field]
    if not isinstance(value, str):
        raise RowError(f"field {field!r}: got {type(value).__name__}, allowed str")
    if not empty and not value.strip():
        raise EmptyError(f"field {field!r} is empty")
    return value


def optional_text(row: Row, field: str) -> str:
    """The string in a field; "" where the field is missing or null."""
    return "" if row.get(field) is None else text(row, field, empty=True)

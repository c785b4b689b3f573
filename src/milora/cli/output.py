"""What the command line prints, in one place: for people, for machines, or next to nothing."""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

Mode = Literal["human", "json", "quiet"]


class Output:
    """Results go to stdout, everything else to stderr.

    Attributes:
        mode: ``human`` prints tables; ``json`` prints one JSON value and nothing else on stdout;
            ``quiet`` prints only the path or name that a script would want.
        console: where progress is shown; silent unless the mode is ``human``.
    """

    def __init__(self, mode: Mode = "human"):
        self.mode = mode
        self.console = Console(stderr=True, quiet=mode != "human")
        self._stdout = Console(file=sys.stdout, soft_wrap=True)

    def note(self, text: str) -> None:
        """Tell a person what happens now."""
        self.console.print(Text(text))

    def result(self, record: Any, human: Any, essence: str = "") -> None:
        """Print what a command found.

        Args:
            record: the whole of it, as JSON takes it.
            human: the same for a person: a string or something that rich prints.
            essence: what is left of it in quiet mode; nothing if empty.
        """
        if self.mode == "json":
            print(json.dumps(record, ensure_ascii=False, default=str), file=self._stdout.file)
        elif self.mode == "human":
            self._stdout.print(Text(human) if isinstance(human, str) else human)
        elif essence:
            print(essence, file=self._stdout.file)

    def error(self, text: str) -> None:
        """Print one line in red on stderr, and in json mode the same as JSON on stdout."""
        line = " ".join(text.split())
        Console(stderr=True, soft_wrap=True).print(Text(f"error: {line}", style="red"))
        if self.mode == "json":
            print(json.dumps({"error": line}, ensure_ascii=False), file=self._stdout.file)


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], title: str | None = None) -> Table:
    """A table for people: text to the left, numbers to the right."""
    rows = [list(row) for row in rows]
    made = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for column, name in enumerate(header):
        numeric = bool(rows) and all(isinstance(row[column], int | float | None) for row in rows)
        made.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text(_cell(value)) for value in row))
    return made


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"

"""What a report is made of, before it is HTML, Markdown, JSON or CSV: all four show the same cells.

A cell keeps the text that a person reads beside the number that is sorted and written for machines. What was not
measured has no number and reads "not measured"; it is never a zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

MISSING = "not measured"


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: what a person reads.
        value: what the column is sorted by; None goes last.
        data: what machines get, where that is more than ``value`` (a mean with its standard error).
        mark: how it is shown: "missing", "good", "bad", "strong", or nothing.
    """

    text: str
    value: float | str | None = None
    data: Any = None
    mark: str = ""


@dataclass(frozen=True)
class Table:
    """A table; every column is sortable. ``header`` are (title, is it a number)."""

    kind: ClassVar[str] = "table"
    id: str
    caption: str
    header: list[tuple[str, bool]]
    rows: list[list[Cell]]


@dataclass(frozen=True)
class Picture:
    """A picture that is drawn only when somebody wants to see it.

    Attributes:
        id: names it in the page.
        title: its name.
        alt: what it shows, in words and numbers, for people who do not see it.
        draw: gives the SVG.
    """

    kind: ClassVar[str] = "picture"
    id: str
    title: str
    alt: str
    draw: Callable[[], str] = field(repr=False)


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True)
class Findings:
    """Sentences, each with its sign: "good", "bad", "open" or "plain"."""

    kind: ClassVar[str] = "findings"
    items: list[tuple[str, str]]


@dataclass(frozen=True)
class Code:
    """A long text that is shown on demand."""

    kind: ClassVar[str] = "code"
    title: str
    text: str


@dataclass(frozen=True)
class Folded:
    """Blocks that are shown on demand."""

    kind: ClassVar[str] = "folded"
    title: str
    blocks: list[Any]


@dataclass(frozen=True)
class Output:
    """What one model wrote for a prompt; ``verdict`` says how it was scored, if it was."""

    name: str
    text: str
    verdict: str = ""


@dataclass(frozen=True)
class Sample:
    """A prompt with what was expected and what each model wrote, the base first."""

    kind: ClassVar[str] = "sample"
    title: str
    prompt: str
    target: str
    outputs: list[Output]


@dataclass(frozen=True)
class Section:
    """A heading and its blocks."""

    id: str
    title: str
    blocks: list[Any]


@dataclass(frozen=True)
class Document:
    """The whole report.

    Attributes:
        title: of the page.
        subtitle: one line on what was read.
        sections: in the order in which they are read; none is empty.
        arms: the main table for machines, one record for each arm.
    """

    title: str
    subtitle: str
    sections: list[Section]
    arms: list[dict[str, Any]]


def missing() -> Cell:
    """The cell of what was not measured."""
    return Cell(MISSING, mark="missing")


def text_cell(text: str | None, mark: str = "") -> Cell:
    """A cell of words."""
    return Cell(text, text, mark=mark) if text else Cell("–", mark="missing")


def count_cell(value: int | None) -> Cell:
    """A whole number, with its thousands apart."""
    return missing() if value is None else Cell(f"{value:,}", value)


def number_cell(value: float | None, mark: str = "") -> Cell:
    """A number of four digits."""
    return missing() if value is None else Cell(number(value), value, mark=mark)


def measured_cell(mean: float | None, stderr: float | None, n: int | None = None, mark: str = "") -> Cell:
    """A mean with its standard error, or alone where there is none."""
    if mean is None:
        return missing()
    return Cell(measured(mean, stderr), mean, {"mean": mean, "stderr": stderr, "n": n}, mark)


def plain_cell(value: Any) -> Cell:
    """A JSON value of an unknown kind; a number without the zeros at its end."""
    if value is None:
        return missing()
    if isinstance(value, bool):
        return Cell("yes" if value else "no", "a" if value else "b", value)
    if isinstance(value, int | float):
        return Cell(_signed(f"{value:,}" if isinstance(value, int) else f"{value:.4g}"), value)
    return text_cell(", ".join(map(str, value)) if isinstance(value, list) else str(value))


def number(value: float) -> str:
    """Four significant digits, without an exponent where that stays short."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if not 1e-4 <= abs(value) < 1e6:
        return _signed(f"{value:.3g}")
    return _signed(f"{value:.{max(0, 3 - math.floor(math.log10(abs(value))))}f}")


def measured(mean: float, stderr: float | None) -> str:
    """``mean ± stderr`` with as many decimals as two digits of the error need."""
    if not stderr:
        return number(mean) if stderr is None else f"{number(mean)} ± 0"
    if stderr < 1e-6 or stderr >= 1e6:
        return f"{number(mean)} ± {number(stderr)}"
    decimals = max(0, 1 - math.floor(math.log10(stderr)))
    return f"{_signed(f'{mean:.{decimals}f}')} ± {stderr:.{decimals}f}"


def interval(difference: float, low: float | None, high: float | None) -> str:
    """``difference [low, high]`` with a sign and as many decimals as two digits of the width need."""
    if low is None or high is None:
        return ("+" if difference > 0 else "") + number(difference)
    width = (high - low) / 2
    if not 1e-6 <= width < 1e6:
        return f"{'+' if difference > 0 else ''}{number(difference)} [{number(low)}, {number(high)}]"
    decimals = max(0, 1 - math.floor(math.log10(width)))
    return "{} [{}, {}]".format(*(_signed(f"{v:+.{decimals}f}") for v in (difference, low, high)))


def rate(value: float | None) -> str:
    """A learning rate as papers write it: 3e-4."""
    if value is None:
        return "–"
    mantissa, exponent = f"{value:.3e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}" if value else "0"


def short(text: str, limit: int = 34) -> str:
    """A name that fits a picture: its middle left out where it is too long."""
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[: limit // 2 - 1]}…{text[-(limit - limit // 2) :]}"


def _signed(text: str) -> str:
    return text.replace("-", "−") if "e" not in text else text

"""From a matplotlib figure to an SVG that lives inside a page.

Lines and letters take the page's own colours, by CSS variables with a fallback: one picture is right on light, on dark
and on paper. Text stays text. Ids carry the picture's name, so that many pictures share a page. The same numbers give
the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from xml.sax.saxutils import escape, quoteattr

WIDTH = 7.4  # inches; 72 units of the picture each

# Colours that stand in a figure for CSS variables of the page: variable -> (stand-in, fallback).
INK = "#010101"
MUTED = "#020202"
GRID = "#030303"
PAPER = "#040404"
_VARIABLES = {
    INK: "currentColor",
    MUTED: "var(--muted, #595959)",
    GRID: "var(--grid, #dddddd)",
    PAPER: "var(--paper, #ffffff)",
}
# Okabe and Ito's colours, told apart by colour-blind people, as dark as a white page needs (3:1); DARK are
# the same on a dark page. Markers and dashes tell the lines apart where there is no colour.
SERIES = ("#0072b2", "#c4500a", "#00795a", "#a8478a", "#8a6500", "#2e8fc4", "#6b6b6b", "#5b3fa0")
DARK = ("#5cb3e8", "#f08c50", "#2fc496", "#e59bcb", "#d9b13b", "#9bd0f0", "#b0b0b0", "#b49cf0")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
# One method has one colour in all pictures of all reports.
SLOTS = {"milora": 0, "pissa": 1, "mica": 2, "random_components": 3, "dora": 4, "lora": 6, "full": 7}

_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "milora",
    "text.parse_math": False,  # a name may hold a dollar
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.labelsize": 8.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.7,
    "lines.markersize": 5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


def colour(slot: int) -> str:
    """The stand-in for the colour of a series."""
    return f"#0a0b{slot % len(SERIES):02x}"


def slots(labels: list[str], methods: list[str]) -> list[int]:
    """A slot for each arm: the one that its method always has, or the next free one. Beyond eight the dash differs."""
    taken: list[int] = []
    for method in methods:
        wanted = SLOTS.get(method)
        free = [i for i in (*(5, 4, 3, 2, 1, 0, 7, 6), *range(8, 8 + len(labels))) if i not in taken]
        taken.append(wanted if wanted is not None and wanted not in taken else free[0])
    return taken


def look(slot: int) -> dict[str, Any]:
    """Colour, marker and dash of a series, as matplotlib's plot takes them; a slot below 0 is the base model's."""
    if slot < 0:
        return {"color": INK, "marker": "*", "linestyle": "-"}
    turn = slot // len(SERIES)
    dash = DASHES[(slot + turn) % len(DASHES)]
    return {"color": colour(slot), "marker": MARKERS[(slot + 3 * turn) % len(MARKERS)], "linestyle": dash}


def whole_numbers(axis: Any) -> None:
    """Label an axis of steps or indices with whole numbers alone."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=7, integer=True))


def plain_log(axis: Any) -> None:
    """Label a logarithmic axis with plain numbers: its own labels are formulas, which names may not be."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


@contextmanager
def new_figure(height: float, width: float = WIDTH) -> Iterator[Any]:
    """Yield an empty figure with the report's style; draw and turn it into SVG inside the block."""
    import warnings

    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # A name in another script is drawn by the reader's own font; matplotlib's lacks it and says so.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield Figure(figsize=(width, height), layout="constrained", dpi=72)


def svg(figure: Any, id: str, title: str, alt: str) -> str:
    """The figure as an ``<svg role="img">`` element with a title and a description.

    Args:
        figure: of ``new_figure``, inside its block.
        id: begins every id in the picture.
        title: the picture's name.
        alt: what it shows, in words.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'<style type="text/css">.*?</style>', "", text, flags=re.DOTALL)
    text = re.sub(r"<path(?: (?!d=)[\w-]+=\"[^\"]*\")*/>", "", text)  # a line without a point
    text = text.replace("xlink:href", "href")
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda m: f' id="{id}-{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r'(href="|url\()#', rf"\g<1>#{id}-", text)
    for stand_in, variable in _VARIABLES.items():
        text = text.replace(stand_in, variable)
    text = re.sub(r"#0a0b(\d\d)", lambda m: f"var(--s{int(m[1])}, {SERIES[int(m[1])]})", text)
    text = re.sub(r"(font(?:-family)?: [^;\"]*?)'DejaVu Sans'[^;\"]*", r"\1var(--font, sans-serif)", text)
    box = re.search(r'viewBox="[^"]*"', text)
    head = (
        f'<svg {box[0] if box else ""} role="img" aria-labelledby={quoteattr(f"{id}-title")} '
        f'aria-describedby={quoteattr(f"{id}-desc")}>\n<title id="{id}-title">{escape(title)}</title>'
        f'<desc id="{id}-desc">{escape(alt)}</desc>'
    )
    body = text[text.index(">") + 1 :]
    return head + "\n".join(line.strip() for line in body.splitlines() if line.strip())

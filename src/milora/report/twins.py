"""The same document as Markdown, JSON and CSV. No picture is drawn for them; JSON says what each shows."""

from __future__ import annotations

import csv
import io
import json
import re
from typing import Any

from milora.report import metrics
from milora.report.build import flat, tables
from milora.report.document import Cell, Document

SIGNS = {"good": "✓", "bad": "✗", "open": "?", "plain": "–"}


def markdown(document: Document) -> str:
    """The document as GitHub's Markdown."""
    parts = [f"# {_text(document.title)}", document.subtitle]
    for section in document.sections:
        parts.append(f"## {_text(section.title)}")
        parts += [part for block in flat(section.blocks) if (part := _block(block))]
    return "\n\n".join(parts) + "\n"


def _block(block: Any) -> str:
    if block.kind == "text":
        return _text(block.text)
    if block.kind == "findings":
        return "\n".join(f"- {SIGNS[sign]} {_text(text)}" for sign, text in block.items)
    if block.kind == "table":
        head = [title.strip() for title, _ in block.header]
        rules = ["---:" if numeric else "---" for _, numeric in block.header]
        rows = [head, rules, *([_marked(cell) for cell in row] for row in block.rows)]
        return f"**{_text(block.caption)}**\n\n" + "\n".join("| " + " | ".join(row) + " |" for row in rows)
    if block.kind == "picture":
        return f"**{_text(block.title)}** (a picture in the HTML page): {_text(block.alt)}"
    if block.kind == "code":
        return f"<details><summary>{_text(block.title)}</summary>\n\n{_fenced(block.text, 'yaml')}\n\n</details>"
    prompt = f"### {_text(block.title)}\n\nPrompt:\n\n{_fenced(block.prompt)}"
    target = f"\n\nExpected:\n\n{_fenced(block.target)}" if block.target else ""
    outputs = [f"{_text(o.name)}{f' ({o.verdict})' if o.verdict else ''}:\n\n{_fenced(o.text)}" for o in block.outputs]
    return prompt + target + "".join("\n\n" + output for output in outputs)


def _marked(cell: Cell) -> str:
    text = _text(cell.text)
    return f"**{text}**" if cell.mark == "strong" else text


def _text(text: str) -> str:
    """One line in which nothing is Markdown or HTML."""
    line = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", line)


def _fenced(text: str, language: str = "") -> str:
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def to_json(document: Document) -> str:
    """Findings, arms and every table with its full numbers, null for what was not measured."""
    blocks = [block for section in document.sections for block in flat(section.blocks)]
    record = {
        "title": document.title,
        "written_by": document.subtitle.rpartition(" by ")[2],
        "findings": [{"sign": s, "text": t} for b in blocks if b.kind == "findings" for s, t in b.items],
        "arms": document.arms,
        "tables": {
            table.id: {
                "section": section.title,
                "caption": table.caption,
                "columns": [title.strip() for title, _ in table.header],
                "rows": [[_value(cell) for cell in row] for row in table.rows],
            }
            for section, table in tables(document)
        },
        "pictures": [{"title": b.title, "shows": b.alt} for b in blocks if b.kind == "picture"],
    }
    return json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _value(cell: Cell) -> Any:
    if cell.data is not None:
        return cell.data
    return cell.value if isinstance(cell.value, int | float) or cell.mark == "missing" else cell.text


def to_csv(document: Document) -> str:
    """One row for each arm: what it is, each metric's mean, standard error and number of seeds, and the differences."""
    own = (
        "arm",
        "label",
        "variant",
        "method",
        "r",
        "learning_rate",
        "chosen",
        "seeds",
        "failed",
        "trainable_parameters",
    )
    rows = []
    for arm in document.arms:
        row = {name: " ".join(map(str, v)) if isinstance(v := arm[name], list) else v for name in own}
        for name, m in arm["metrics"].items():
            if not metrics.whole(name):
                continue
            row |= {name: m["mean"], f"{name} stderr": m["stderr"], f"{name} n": len(m["by_seed"]) or None}
        for other, found in arm["against"].items():
            for name, d in (found or {}).items():
                if not metrics.whole(name):
                    continue
                low, high = ((d or {}).get("interval") or [None, None])[:2]
                at = f"{name} against {other}"
                row |= {at: (d or {}).get("difference"), f"{at} low": low, f"{at} high": high}
        rows.append(row)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(dict.fromkeys([*own, *(k for row in rows for k in row)])), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: _plain(v) for k, v in row.items()} for row in rows)
    return buffer.getvalue()


def _plain(value: Any) -> Any:
    # A spreadsheet runs a text that begins like a formula.
    return "'" + value if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value

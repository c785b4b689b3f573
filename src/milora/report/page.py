"""The document as one HTML file: style, script and pictures inside, nothing asked of any other place."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from typing import Any

from milora.report.document import Document, Picture
from milora.report.figure import DARK, SERIES


def page(document: Document) -> str:
    """The whole HTML page. What the folders hold is text in it, never markup.

    A content security policy forbids every request and every script but the page's own.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    script, style = _file("page.js"), _colours() + _file("page.css")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters["svg"] = lambda picture: Markup(_drawn(picture))
    template = environment.from_string(_file("page.html.j2"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return template.render(document=document, style=Markup(style), script=Markup(script), digest=digest)


def _drawn(picture: Picture) -> str:
    return picture.draw()


def _file(name: str) -> str:
    return (resources.files("milora.report") / name).read_text(encoding="utf-8")


def _colours() -> str:
    pairs: list[Any] = [
        f"--s{i}: light-dark({light}, {dark});" for i, (light, dark) in enumerate(zip(SERIES, DARK, strict=True))
    ]
    return ":root { " + " ".join(pairs) + " }\n"

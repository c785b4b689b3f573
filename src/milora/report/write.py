"""Read folders, build the document, write it in the formats that are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from milora.errors import MiloraError
from milora.models.atomic import write_text
from milora.report.build import build
from milora.report.document import Document
from milora.report.folders import read

FORMATS = ("html", "md", "json", "csv")


def write_report(
    folders: Sequence[str | Path],
    *,
    output: str | Path | None = None,
    formats: Sequence[str] = FORMATS,
    overwrite: bool = False,
    title: str | None = None,
) -> list[Path]:
    """Write the report of one comparison folder, or of one or several run folders.

    Args:
        folders: what is read; nothing in them is changed but the report itself.
        output: the HTML file, whose name the other formats share; by default ``report.html`` in the one folder, or in
            the current one for several.
        formats: of "html", "md", "json", "csv".
        overwrite: replace files that are there.
        title: of the page; by default the folder's name.

    Returns:
        The files in the order of ``formats``.

    Raises:
        MiloraError: no run or comparison in a folder, an unknown format, files that exist, a missing package.
    """
    formats = list(dict.fromkeys(formats))
    if not formats or (unknown := [f for f in formats if f not in FORMATS]):
        raise MiloraError(f"formats: got {', '.join(unknown) if formats else 'none'}, allowed {', '.join(FORMATS)}")
    material = read(folders)
    files = _files(folders, output, formats)
    if not overwrite and (there := [str(file) for file in files if file.exists()]):
        raise MiloraError(f"report: {', '.join(there)} exists; --overwrite replaces it")
    if "html" in formats and (absent := [p for p in ("matplotlib", "jinja2") if find_spec(p) is None]):
        raise MiloraError(f"report: {' and '.join(absent)} is not installed; pip install 'milora[report]'")
    document = build(material, title)
    texts = [_render(document, name) for name in formats]
    for file, text in zip(files, texts, strict=True):
        write_text(file, text)
    return files


def _files(folders: Sequence[str | Path], output: str | Path | None, formats: Sequence[str]) -> list[Path]:
    home = Path(folders[0]) if len(folders) == 1 else Path()
    file = Path(output).expanduser() if output is not None else home / "report.html"
    stem = file.name.removesuffix(file.suffix) if file.suffix.lower().lstrip(".") in (*FORMATS, "htm") else file.name
    if file.is_dir() or not stem:
        raise MiloraError(f"output: got {file}, allowed the name of a file, such as report.html")
    named = {file.suffix.lower().lstrip("."): file}
    return [named.get(name, file.with_name(f"{stem}.{name}")) for name in formats]


def _render(document: Document, name: str) -> str:
    from milora.report import page, twins

    return {"html": page.page, "md": twins.markdown, "json": twins.to_json, "csv": twins.to_csv}[name](document)

"""``milora report FOLDER...``: runs or a comparison as one page, and as Markdown, JSON and CSV."""

from pathlib import Path
from typing import Annotated

import typer

from milora.cli.output import Output


def report(
    context: typer.Context,
    folders: Annotated[
        list[str], typer.Argument(metavar="FOLDER...", help="A comparison folder, or one or several run folders.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(help="The page; the other formats share its name. By default report.html in the one folder."),
    ] = None,
    formats: Annotated[str, typer.Option(help="Which to write, with commas between.")] = "html,md,json,csv",
    title: Annotated[str | None, typer.Option(help="Of the page; by default the folder's name.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
) -> None:
    """Write what runs or a comparison measured as one self-contained page, and as Markdown, JSON and CSV."""
    from milora.report import write_report

    screen: Output = context.obj
    wanted = [name.strip() for name in formats.split(",") if name.strip()]
    files = [str(f) for f in write_report(folders, output=output, formats=wanted, overwrite=overwrite, title=title)]
    screen.result({"files": files}, "\n".join(files), essence=files[0])

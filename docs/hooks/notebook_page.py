"""A notebook becomes a page: it is run while the site is built, and the page shows what it printed."""

import copy
import functools
import os
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from markdown_tables import fence
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
SOURCE = Path(__file__).resolve().parents[2] / "src"
TIMEOUT = 300  # seconds for one cell


def page(name: str) -> str:
    """The cells below the notebook's own title, each block of code with what it printed."""
    cells = executed((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")).cells
    text = "\n\n".join(_cell(cell) for cell in cells)
    link = f"[Download the notebook]({name}.ipynb). Outputs are those of the run that built this page.\n\n"
    return link + text.partition("\n")[2].lstrip() if text.startswith("# ") else link + text


@functools.cache
def executed(text: str) -> Any:
    """The notebook after a run from top to bottom, in a folder of its own.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised.
    """
    notebook = copy.deepcopy(nbformat.reads(text, as_version=4))
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {
            "HF_HUB_OFFLINE": "1", "MILORA_CACHE": folder,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(SOURCE), os.environ.get("PYTHONPATH")])),
        }  # fmt: skip
        client = NotebookClient(
            notebook, timeout=TIMEOUT, kernel_name="python3", resources={"metadata": {"path": folder}}
        )
        client.execute(env=environment)
    return notebook


def _cell(cell: Any) -> str:
    if cell.cell_type == "markdown":
        return cell.source
    if cell.cell_type != "code":
        return ""
    printed = "".join(_text(output) for output in cell.outputs)
    return fence(cell.source, "python") + (f"\n{fence(printed, 'text')}" if printed.strip() else "")


def _text(output: Any) -> str:
    if output.output_type == "stream":
        return output.text if output.name == "stdout" else ""
    return str(output.get("data", {}).get("text/plain", ""))

"""``milora merge ADAPTER --model_name_or_path M --output DIR``: a whole model, the adapter added into it."""

from pathlib import Path
from typing import Annotated

import typer

from milora.cli.export import Base, Destination, Overwrite, adapter_folder
from milora.cli.output import Output


def merge(
    context: typer.Context,
    adapter: Annotated[Path, typer.Argument(help="A run folder or an adapter's folder.")],
    model_name_or_path: Base,
    output: Destination,
    overwrite: Overwrite = False,
    force: Annotated[bool, typer.Option("--force", help="Merge into a base it was not made for.")] = False,
) -> None:
    """Add an adapter into the base model's weights (in float32, cast once) and write the whole model."""
    from milora.adapters.merge import merge_adapter

    show: Output = context.obj
    written = merge_adapter(adapter_folder(adapter), model_name_or_path, output, overwrite=overwrite, force=force)
    show.result({"output": str(written)}, f"{written}: written as a whole model", essence=str(written))

"""``milora merge ADAPTER --model_name_or_path M --output DIR``: `milora export --to merged`."""

from pathlib import Path
from typing import Annotated

import typer

from milora.cli.export import Base, Check, Destination, Force, Overwrite, ShardSize, export


def merge(
    context: typer.Context,
    adapter: Annotated[Path, typer.Argument(help="A run folder or an adapter's folder.")],
    model_name_or_path: Base,
    output: Destination,
    max_shard_size: ShardSize = "5GB",
    check: Check = None,
    force: Force = False,
    overwrite: Overwrite = False,
) -> None:
    """Add an adapter into the base model's weights (in float32, cast once) and write the whole model."""
    export(
        context, adapter, model_name_or_path, output, to="merged", max_shard_size=max_shard_size, check=check,
        force=force, overwrite=overwrite,
    )  # fmt: skip

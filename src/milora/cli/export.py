"""``milora export ADAPTER --model_name_or_path M --output DIR``: an adapter that plain PEFT loads."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from milora.cli.output import Output

Base = Annotated[str, typer.Option("--model_name_or_path", "--model-name-or-path", help="The base model.")]
Destination = Annotated[Path, typer.Option("--output", help="The folder to write; must not exist yet.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the folder at --output.")]


def export(
    context: typer.Context,
    adapter: Annotated[Path, typer.Argument(help="A run folder or an adapter's folder.")],
    model_name_or_path: Base,
    output: Destination,
    to: Annotated[Literal["lora"], typer.Option("--to", help="The form to write.")] = "lora",
    overwrite: Overwrite = False,
) -> None:
    """Write an adapter as plain LoRA, which PEFT loads on the untouched base without this package."""
    from milora.adapters.export import export_lora

    show: Output = context.obj
    written = export_lora(adapter_folder(adapter), model_name_or_path, output, overwrite=overwrite, check_base=True)
    show.result({"output": str(written), "to": to}, f"{written}: written as plain LoRA", essence=str(written))


def adapter_folder(path: Path) -> Path:
    """The folder of an adapter in its own form, of a run or by itself."""
    from milora.runs import RunFolder

    run = RunFolder(path)
    return run.own_adapter() if run.holds_run else path

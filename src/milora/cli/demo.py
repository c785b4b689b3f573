"""``milora demo``: the whole path on a small model and on facts that no model can know."""

from pathlib import Path
from typing import Annotated, Any

import typer

from milora.cli.output import Output, table


def demo(
    context: typer.Context,
    output_dir: Annotated[Path, typer.Option("--output_dir", "--output-dir", help="Data, run and export.")] = Path(
        "demo"
    ),
    model_name_or_path: Annotated[
        str | None,
        typer.Option("--model_name_or_path", "--model-name-or-path", help="Another model than SmolLM2-135M-Instruct."),
    ] = None,
    method: Annotated[str, typer.Option(help="The method to fine-tune with.")] = "milora",
    max_steps: Annotated[int | None, typer.Option("--max_steps", "--max-steps", help="Stop after so many.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier demo.")] = False,
) -> None:
    """Fine-tune a small model on invented facts, evaluate, measure forgetting, export and reload in stock PEFT."""
    from milora.demo.run import demo as run_demo
    from milora.methods import get_method

    get_method(method)
    output: Output = context.obj
    overrides: dict[str, Any] = {"method": method} | ({"max_steps": max_steps} if max_steps is not None else {})
    found = run_demo(
        output_dir,
        model_name_or_path=model_name_or_path,
        overrides=overrides,
        overwrite=overwrite,
        console=output.console,
    )
    rows = [
        [f"answers right, of {found.questions} (chance 0.25)", found.accuracy_base, found.accuracy_tuned],
        ["cross-entropy with the base on text it knows", found.floor, found.forgetting],
        ["KL from the base there (forgetting)", 0.0, found.kl],
        ["largest logit difference, export in stock PEFT", None, found.export_difference],
    ]
    shown = table(["measured", "base", f"tuned ({method})"], rows, title=f"{found.run} ({found.minutes:.1f} minutes)")
    output.result(found.as_dict(), shown, essence=found.run)

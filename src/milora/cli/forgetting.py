"""``milora forgetting RUN --text FILE``: how far a model has moved from its base on a text that the base knows."""

from typing import Annotated

import typer

from milora.cli.evaluate import AdapterBase, Device, Dtype, Force, Subject
from milora.cli.output import Output, table
from milora.cli.progress import progress


def forgetting(
    context: typer.Context,
    run_or_adapter: Subject,
    text: Annotated[
        str | None, typer.Option(help="A .txt or .txt.gz file, or wikitext-103; else the recipe's forgetting_text.")
    ] = None,
    block: Annotated[int | None, typer.Option(help="Tokens in one block.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max_tokens", "--max-tokens", help="Use this many tokens of the text.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch_size", "--batch-size", help="Blocks in one forward pass.")] = 1,
    model_name_or_path: AdapterBase = None,
    dtype: Dtype = None,
    device: Device = None,
    force: Force = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the measurement in the run.")] = False,
) -> None:
    """Measure forgetting: cross-entropy against the base's own predictions, with its floor and the KL."""
    from milora.analysis import forgetting as measure
    from milora.analysis import read_text
    from milora.errors import MiloraError
    from milora.runs import RunFolder, refresh_card
    from milora.runs.folder import write_json
    from milora.runs.tuned import load_tuned

    output: Output = context.obj
    run = RunFolder(run_or_adapter)
    if run.holds_run:
        recipe = run.recipe()
        text = recipe.forgetting_text if text is None else text
        block = recipe.forgetting_block if block is None else block
        max_tokens = recipe.forgetting_max_tokens if max_tokens is None else max_tokens
        if run.forgetting_file.exists() and not overwrite:
            raise MiloraError(f"forgetting: {run.forgetting_file} exists; --overwrite replaces it")
    if text is None:
        raise MiloraError("--text: got none, allowed a .txt or .txt.gz file, or wikitext-103")
    content = read_text(text)
    tuned = load_tuned(run_or_adapter, model_name_or_path=model_name_or_path, dtype=dtype, device=device, force=force)
    with progress(output) as show:
        found = measure(
            tuned.model, tuned.tokenizer, content, base_model=tuned.base_model,
            block=512 if block is None else block, max_tokens=max_tokens, batch_size=batch_size,
            progress=lambda done, total: show("blocks", done, total),
        )  # fmt: skip
    record = {"text": text, **found.as_dict()}
    if tuned.run:
        write_json(tuned.run.forgetting_file, record)
        refresh_card(tuned.run)
    output.result(record, table(["measure", "value"], [[k, v] for k, v in record.items()]))

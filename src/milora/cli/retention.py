"""``milora retention RUN``: what a run knows, and what it has forgotten, at each of its checkpoints."""

from pathlib import Path
from typing import Annotated, Any

import typer

from milora.cli.evaluate import AdapterBase, Device, Dtype
from milora.cli.output import Output, table
from milora.cli.progress import progress


def retention(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="A run folder with checkpoints.")],
    tasks: Annotated[str | None, typer.Option(help="Names with commas; else the recipe's eval_tasks.")] = None,
    runs: Annotated[int, typer.Option(help="Evaluation runs of each task, the choices in another order.")] = 8,
    tasks_at: Annotated[
        str | None,
        typer.Option("--tasks_at", "--tasks-at", help="Steps at which tasks are run, with commas; else all."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="So many rows of each task.")] = None,
    data_dir: Annotated[
        str | None, typer.Option("--data_dir", "--data-dir", help="Local rows for this package's tasks.")
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="Forgetting on this .txt or .txt.gz file; else the recipe's forgetting_text.")
    ] = None,
    block: Annotated[int | None, typer.Option(help="Tokens in one block of it.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max_tokens", "--max-tokens", help="Use this many tokens of it.")
    ] = None,
    losses: Annotated[
        list[str] | None, typer.Option("--losses", help="NAME=FILE: loss and accuracy on a text's wording; repeatable.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch_size", "--batch-size", help="Requests in one forward pass.")
    ] = None,
    onto: Annotated[
        str | None, typer.Option(help="Measure on this model with the change added: the base's instruct model.")
    ] = None,
    model_name_or_path: AdapterBase = None,
    dtype: Dtype = None,
    device: Device = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Measure what is there again.")] = False,
) -> None:
    """Measure the base and each checkpoint of a run: tasks over several evaluation runs, forgetting, wording."""
    from milora.comparison.retention import retention as measure
    from milora.runs import RunFolder

    output: Output = context.obj
    recipe = RunFolder(run).recipe()
    changed = {"model_name_or_path": model_name_or_path, "dtype": dtype, "device": device}
    recipe = recipe.model_copy(update={key: value for key, value in changed.items() if value is not None})
    names = [name.strip() for name in (tasks or "").split(",") if name.strip()] or list(recipe.eval_tasks)
    asked = {
        "tasks": names, "runs": runs, "tasks_at": _steps(tasks_at), "losses": _named(losses or []), "onto": onto,
        "limit": recipe.eval_limit if limit is None else limit,
        "batch_size": recipe.eval_batch_size if batch_size is None else batch_size,
        "data_dir": recipe.eval_data_dir if data_dir is None else data_dir,
        "text": recipe.forgetting_text if text is None else text,
        "block": recipe.forgetting_block if block is None else block,
        "max_tokens": recipe.forgetting_max_tokens if max_tokens is None else max_tokens,
    }  # fmt: skip
    with progress(output) as show:
        record = measure(run, recipe=recipe, overwrite=overwrite, progress=show, **asked)
    output.result(record, _table(record), essence=str(run / "retention.json"))


def _steps(text: str | None) -> list[int] | None:
    from milora.errors import MiloraError

    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() for part in parts):
        raise MiloraError(f"--tasks_at: got {text!r}, allowed numbers of steps with commas, 0 for the base")
    return [int(part) for part in parts]


def _named(pairs: list[str]) -> dict[str, str]:
    from milora.errors import MiloraError

    parts = [pair.partition("=") for pair in pairs]
    named = {name: file for name, _, file in parts}
    if wrong := [name for name, file in named.items() if not name or not file]:
        raise MiloraError(f"--losses: got {wrong[0]!r}, allowed NAME=FILE")
    return named


def _table(record: dict[str, Any]) -> Any:
    from milora.runs import measured

    rows: list[list[Any]] = []
    for row in record["rows"]:
        where = [row["step"], f"{row['epoch']:.2f}"]
        if row["forgetting"]:
            rows.append([*where, "forgetting", "kl", measured(row["forgetting"]["kl"], row["forgetting"]["kl_stderr"])])
        for name, loss in row["losses"].items():
            rows.append([*where, name, "nll", measured(loss, None)])
            rows.append([*where, name, "accuracy", measured(row["accuracies"][name], None)])
        rows += [[*where, s["task"], s["metric"], measured(s["value"], s["stderr"])] for s in row["scores"]]
    return table(["step", "epoch", "what", "metric", "value"], rows)

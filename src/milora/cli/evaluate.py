"""``milora eval RUN_OR_MODEL --tasks A,B``: tasks of lm-evaluation-harness, base and tuned side by side."""

from pathlib import Path
from typing import Annotated, Any

import typer

from milora.cli.output import Output, table
from milora.cli.progress import progress

SIDES = ["base", "tuned", "difference"]
Subject = Annotated[str, typer.Argument(help="A run folder, an adapter's folder, or a model.")]
AdapterBase = Annotated[
    str | None,
    typer.Option("--model_name_or_path", "--model-name-or-path", help="The base, if not the adapter's own."),
]
Dtype = Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16; else the run's own.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...; else a GPU where there is one.")]
Force = Annotated[bool, typer.Option("--force", help="Load an adapter on a base it was not made for.")]


def evaluate(
    context: typer.Context,
    run_or_model: Subject,
    tasks: Annotated[str | None, typer.Option(help="Names with commas; else the recipe's eval_tasks.")] = None,
    limit: Annotated[float | None, typer.Option(help="So many rows of each task, or a share under 1.")] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch_size", "--batch-size", help="Requests in one forward pass.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option("--data_dir", "--data-dir", help="Local rows for this package's tasks.")
    ] = None,
    num_fewshot: Annotated[
        int | None, typer.Option("--num_fewshot", "--num-fewshot", help="Examples before each question.")
    ] = None,
    max_gen_toks: Annotated[
        int | None, typer.Option("--max_gen_toks", "--max-gen-toks", help="At most so many new tokens.")
    ] = None,
    gen_kwargs: Annotated[
        str | None, typer.Option("--gen_kwargs", "--gen-kwargs", help="Over the task's own, e.g. num_beams=4.")
    ] = None,
    include_path: Annotated[
        Path | None, typer.Option("--include_path", "--include-path", help="A further folder of task files.")
    ] = None,
    apply_chat_template: Annotated[
        bool, typer.Option("--apply_chat_template", "--apply-chat-template", help="Wrap each prompt in it.")
    ] = False,
    max_length: Annotated[
        int | None, typer.Option("--max_length", "--max-length", help="Context in tokens, under the model's own.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of sampling and of the choice of examples.")] = 0,
    task_seed: Annotated[
        int | None, typer.Option("--task_seed", "--task-seed", help="Draws the order of a book question's choices.")
    ] = None,
    task_settings: Annotated[
        str | None,
        typer.Option("--task_settings", "--task-settings", help="Its own, e.g. prompt_template=alpaca."),
    ] = None,
    model_name_or_path: AdapterBase = None,
    dtype: Dtype = None,
    device: Device = None,
    force: Force = False,
    output: Annotated[
        Path | None, typer.Option("--output", help="A folder for results and completions, in place of the run's.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace these tasks' results in the run, or the folder at --output.")
    ] = False,
) -> None:
    """Evaluate a run, an adapter or a model. A run keeps its results and every completion in its folder."""
    from milora.runs.tuned import load_tuned

    screen: Output = context.obj
    settings = {
        "limit": _whole(limit), "batch_size": batch_size, "data_dir": data_dir, "num_fewshot": num_fewshot,
        "max_gen_toks": max_gen_toks, "apply_chat_template": apply_chat_template, "seed": seed,
        "gen_kwargs": _pairs(gen_kwargs), "include_path": include_path,
        "task_seed": task_seed, "max_length": max_length, "task_settings": _pairs(task_settings, "--task_settings"),
    }  # fmt: skip
    names, settings = _with_recipe(run_or_model, tasks, settings)
    output = output and output.expanduser()
    _refuse_existing(run_or_model, names, output, overwrite)
    tuned = load_tuned(run_or_model, model_name_or_path=model_name_or_path, dtype=dtype, device=device, force=force)
    run = tuned.run if output is None else None
    with progress(screen) as show:
        record = _evaluate(tuned, names, run, overwrite, settings | {"progress": show})
    _note_truncated(screen, record)
    written = _write(record, run, output)
    if run:
        record = run.results()["eval"]
    single = "comparison" not in record
    human = _table(record["scores"], ["value"]) if single else _table(record["comparison"], SIDES)
    screen.result(record, human, essence=str(written or ""))


def _refuse_existing(path: str, names: list[str], output: Path | None, overwrite: bool) -> None:
    """Find out before a model is loaded whether the results would have no place."""
    from milora.errors import MiloraError
    from milora.evaluation import refuse_measured
    from milora.runs import RunFolder

    if output is None:
        if RunFolder(path).holds_run and not overwrite:
            refuse_measured(path, names)
        return
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not (output / "results.json").is_file():
        raise MiloraError(f"output: {output} exists and holds no results, allowed a new folder")
    if not overwrite:
        raise MiloraError(f"output: {output} exists, allowed a new folder, or --overwrite")


def _evaluate(tuned: Any, names: list[str], run: Any, overwrite: bool, settings: dict[str, Any]) -> dict[str, Any]:
    from milora import evaluation

    tokenizer = tuned.processor or tuned.tokenizer
    if not tuned.has_base:
        return evaluation.evaluate(tuned.model, tokenizer, names, **settings)
    return evaluation.evaluate_base_and_tuned(
        tuned.model,
        tokenizer,
        names,
        base_model=tuned.base_model,
        run_folder=run and run.path,
        overwrite=overwrite,
        **settings,
    )


def _note_truncated(screen: Output, record: dict[str, Any]) -> None:
    side = record.get("tuned", record)
    for task, count in side["truncated"].items():
        if count:
            of = f"{count} of {len(side['completions'][task])} rows"
            screen.note(f"{task}: in {of} the prompt does not fit the model's context and lost its beginning")


def _write(record: dict[str, Any], run: Any, output: Path | None) -> Path | None:
    """Bring the run's card up to date, or write --output as a whole; returns where the results lie."""
    from milora.evaluation import write_results
    from milora.models.atomic import replacing
    from milora.runs import refresh_card

    if run:
        refresh_card(run)
        return run.eval_results_file
    if output is None:
        return None
    with replacing(output) as temporary:
        write_results(temporary, record)
    return output / "results.json"


def _with_recipe(path: str, tasks: str | None, settings: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Fill what no flag says from the recipe of the run, if it is one."""
    from milora.errors import MiloraError
    from milora.runs import RunFolder

    names = [name.strip() for name in (tasks or "").split(",") if name.strip()]
    given = {key: value for key, value in settings.items() if value is not None}
    run = RunFolder(path)
    if run.holds_run:
        recipe = run.recipe()
        names = names or list(recipe.eval_tasks)
        defaults = {
            "limit": recipe.eval_limit,
            "batch_size": recipe.eval_batch_size,
            "data_dir": recipe.eval_data_dir,
        }
        given = {key: value for key, value in defaults.items() if value is not None} | given
    if not names:
        raise MiloraError("--tasks: got none, name at least one (milora's own are in its folder tasks)")
    return names, given


def _pairs(text: str | None, flag: str = "--gen_kwargs") -> dict[str, Any] | None:
    """`a=1,b=true` as YAML values by name."""
    import yaml

    from milora.errors import MiloraError

    if text is None:
        return None
    named = [pair.partition("=") for pair in text.split(",")]
    wrong = [name for name, equals, _ in named if not equals or not name.isidentifier()]
    if wrong:
        raise MiloraError(f"{flag}: got {wrong[0]!r}, allowed name=value pairs with commas")
    return {name: yaml.safe_load(value) for name, _, value in named}


def _whole(limit: float | None) -> int | float | None:
    return int(limit) if limit is not None and limit >= 1 else limit


def _table(records: list[dict[str, Any]], sides: list[str]) -> Any:
    from milora.runs import measured

    rows = [
        [record["task"], record["metric"], record["filter"], record["n"]]
        + [measured(record[side], record["stderr" if side == "value" else f"{side}_stderr"]) for side in sides]
        for record in records
    ]
    return table(["task", "metric", "filter", "rows", *sides], rows)

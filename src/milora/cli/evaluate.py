"""``milora eval RUN_OR_MODEL --tasks A,B``: tasks of lm-evaluation-harness, base and tuned side by side."""

from pathlib import Path
from typing import Annotated, Any

import typer

from milora.cli.output import Output, table
from milora.cli.progress import progress

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
    seed: Annotated[int, typer.Option(help="Of sampling and of the choice of examples.")] = 0,
    model_name_or_path: AdapterBase = None,
    dtype: Dtype = None,
    device: Device = None,
    force: Force = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the results in the run.")] = False,
) -> None:
    """Evaluate a run, an adapter or a model. A run keeps its results and every completion in its folder."""
    from milora.runs.tuned import load_tuned

    output: Output = context.obj
    settings = {
        "limit": _whole(limit), "batch_size": batch_size, "data_dir": data_dir, "num_fewshot": num_fewshot,
        "max_gen_toks": max_gen_toks, "apply_chat_template": apply_chat_template, "seed": seed,
        "gen_kwargs": _pairs(gen_kwargs), "include_path": include_path,
    }  # fmt: skip
    names, settings = _with_recipe(run_or_model, tasks, settings)
    tuned = load_tuned(run_or_model, model_name_or_path=model_name_or_path, dtype=dtype, device=device, force=force)
    with progress(output) as show:
        _evaluate(output, tuned, names, overwrite, settings | {"progress": show})


def _evaluate(output: Output, tuned: Any, names: list[str], overwrite: bool, settings: dict[str, Any]) -> None:
    from milora import evaluation
    from milora.runs import refresh_card

    if not tuned.has_base:
        record = evaluation.evaluate(tuned.model, tuned.tokenizer, names, **settings)
        output.result(record, _table(record["scores"], ["value"]))
        return
    record = evaluation.evaluate_base_and_tuned(
        tuned.model,
        tuned.tokenizer,
        names,
        base_model=tuned.base_model,
        run_folder=tuned.run and tuned.run.path,
        overwrite=overwrite,
        **settings,
    )
    if tuned.run:
        refresh_card(tuned.run)
        record = tuned.run.results()["eval"]
    essence = str(tuned.run.eval_results_file) if tuned.run else ""
    output.result(record, _table(record["comparison"], ["base", "tuned", "difference"]), essence=essence)


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


def _pairs(text: str | None) -> dict[str, Any] | None:
    """`a=1,b=true` as YAML values by name."""
    import yaml

    from milora.errors import MiloraError

    if text is None:
        return None
    named = [pair.partition("=") for pair in text.split(",")]
    wrong = [name for name, equals, _ in named if not equals or not name.isidentifier()]
    if wrong:
        raise MiloraError(f"--gen_kwargs: got {wrong[0]!r}, allowed name=value pairs with commas")
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

"""``milora compare GRID | ls``: methods, ranks, learning rates and seeds on one base, run, measured and compared."""

from typing import Annotated, Any

import typer

from milora.cli.output import Output, table


def compare(
    context: typer.Context,
    grid: Annotated[str, typer.Argument(help="A YAML file, the name of a grid of the package, or ls to list those.")],
    output_dir: Annotated[str | None, typer.Option("--output", "--output_dir", help="The comparison folder.")] = None,
    model_name_or_path: Annotated[
        str | None, typer.Option("--model_name_or_path", "--model-name-or-path", help="The base model of all runs.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="The training data of all runs.")] = None,
    text: Annotated[str | None, typer.Option(help="The text on which forgetting is measured.")] = None,
    data_dir: Annotated[
        str | None, typer.Option("--data_dir", "--data-dir", help="A folder with the files of the grid's local_files.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds, parted by commas.")] = None,
    procs: Annotated[int | None, typer.Option(help="Processes that run at once, as memory allows.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE over the grid, e.g. base.max_steps=10; may be repeated."),
    ] = None,
    all_rates: Annotated[
        bool, typer.Option("--all_rates", "--all-rates", help="Measure the rates that were not chosen too.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the comparison in the folder.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry_run", "--dry-run", help="List the runs and stop.")] = False,
) -> None:
    """Compare methods by a grid; a call on a folder that holds part of it goes on with the rest."""
    from milora.comparison.load import load_grid, read_setting, read_value

    output: Output = context.obj
    if grid == "ls":
        return _list(output)
    flags = {"output_dir": output_dir, "base.model_name_or_path": model_name_or_path, "base.dataset": dataset,
             "measure.forgetting.text": text, "procs": procs}  # fmt: skip
    overrides: dict[str, Any] = {key: value for key, value in flags.items() if value is not None}
    if seeds is not None:
        overrides["seeds"] = read_value(f"[{seeds.strip('[]')}]", "--seeds")
    loaded = load_grid(grid, overrides | dict(map(read_setting, settings or ())), data_dir)
    if dry_run:
        return _show_runs(output, loaded)
    _run(output, loaded, overwrite=overwrite, all_rates=all_rates)


def _run(output: Output, grid: Any, *, overwrite: bool, all_rates: bool) -> None:
    from milora.comparison import compare as compare_grid
    from milora.comparison.checks import failed_gates
    from milora.comparison.tables import tables

    record = compare_grid(grid, overwrite=overwrite, all_rates=all_rates, console=output.console)
    output.result(record, tables(record), essence=grid.output_dir)
    if failed := failed_gates(record["checks"]):
        output.note(f"{len(failed)} of {len(record['checks'])} checks failed: {'; '.join(failed)}")
        raise typer.Exit(1)
    broken = [f"{arm['label']} seed {seed}" for arm in record["arms"] for seed in arm["failed"]]
    if broken:
        every = not any(arm["seeds"] for arm in record["arms"])
        output.note(
            "every run failed" if every else f"runs failed: {', '.join(broken)}; the same command tries them again"
        )
        raise typer.Exit(1)


def _show_runs(output: Output, grid: Any) -> None:
    from milora.comparison.engine import planned
    from milora.comparison.plan import rate_name

    runs = planned(grid)
    record = {stage: [job.recipe.model_dump(mode="json") for job in jobs] for stage, jobs in runs.items()}
    rows = [
        [stage, job.name, job.recipe.method, job.cell.r, rate_name(job.learning_rate), job.seed, job.recipe.max_steps]
        for stage, jobs in runs.items()
        for job in jobs
    ]
    header = ["stage", "run", "method", "r", "learning rate", "seed", "steps"]
    names = "\n".join(job.name for jobs in runs.values() for job in jobs)
    output.result(record, table(header, rows), essence=names)


def _list(output: Output) -> None:
    from milora.comparison.load import grids, load_grid

    found = {name: load_grid(name) for name in grids()}
    record = [{"name": name, "description": grid.description} for name, grid in found.items()]
    rows = [[entry["name"], entry["description"] or ""] for entry in record]
    output.result(record, table(["grid", "what it compares"], rows), essence="\n".join(found))

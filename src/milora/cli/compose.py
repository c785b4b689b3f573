"""``milora compose A B --weights 0.5 0.5 --output DIR``: several adapters of one base as one."""

from pathlib import Path
from typing import Annotated, Any

import typer

from milora.cli.export import Destination, Force, Overwrite, adapter_folder
from milora.cli.output import Output
from milora.errors import MiloraError


def compose(
    context: typer.Context,
    adapters: Annotated[list[Path], typer.Argument(help="Run folders or adapters' folders, two or more.")],
    output: Destination,
    weights: Annotated[
        str | None, typer.Option("--weights", help="One number an adapter, with commas or spaces: 0.5,0.5.")
    ] = None,
    validation: Annotated[
        str | None, typer.Option("--validation", help="Find the weights on these rows, which no test may use.")
    ] = None,
    dataset_format: Annotated[
        str, typer.Option("--dataset_format", "--dataset-format", help="The format of those rows.")
    ] = "auto",
    rows: Annotated[int, typer.Option("--rows", help="How many of them.")] = 10,
    iterations: Annotated[int, typer.Option("--iterations", help="Populations of the search.")] = 50,
    seed: Annotated[int, typer.Option("--seed", help="Of the rows and of the search.")] = 0,
    model_name_or_path: Annotated[
        str | None, typer.Option("--model_name_or_path", "--model-name-or-path", help="The base model.")
    ] = None,
    force: Force = False,
    overwrite: Overwrite = False,
) -> None:
    """Write the weighted sum of adapters; the weights are given, or found on validation rows."""
    from milora.adapters.compose import composable
    from milora.adapters.compose import compose as write

    show: Output = context.obj
    folders = [adapter_folder(path) for path in adapters]
    if (weights is None) == (validation is None):
        raise MiloraError("weights: got both or neither of --weights and --validation, allowed one of them")
    record: dict[str, Any] = {}
    if weights is not None:
        given = _numbers(weights)
    else:
        assert validation is not None
        from milora.training.mixing import find_weights

        if model_name_or_path is None:
            raise MiloraError("model_name_or_path: got none, needed to find weights on rows")
        composable(folders, output, model_name_or_path=model_name_or_path, overwrite=overwrite, force=force)
        found = find_weights(
            folders, model_name_or_path, validation, dataset_format=dataset_format, rows=rows, iterations=iterations,
            seed=seed, force=force,
        )  # fmt: skip
        given = found.weights
        record["search"] = {"score": found.score, "history": found.history, "tried": found.tried}
    done = write(folders, given, output, model_name_or_path=model_name_or_path, overwrite=overwrite, force=force)
    record |= {"output": str(done.path), "how": done.how, "method": done.method, "rank": done.rank, "weights": given}
    said = ", ".join(f"{a:.4g} x {folder}" for a, folder in zip(given, folders, strict=True))
    kind = f"plain LoRA, rank {done.rank}" if done.how == "concatenation" else f"{done.method}, an exact sum"
    show.result(record, f"{done.path}: {said}, written as {kind}", essence=str(done.path))


def _numbers(text: str) -> list[float]:
    try:
        return [float(word) for word in text.replace(",", " ").split()]
    except ValueError as error:
        raise MiloraError(f"weights: got {text!r}, allowed numbers with commas or spaces") from error

"""``milora spectrum MODEL``: the singular values of a model's weights, layer by layer and by module type."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group

from milora.cli.checkpoint_flags import Device, GGUFFile, Model, Procs, Targets, TrustRemoteCode
from milora.cli.output import Output, table
from milora.cli.progress import filling


def spectrum(
    context: typer.Context,
    model: Model,
    rank: Annotated[int, typer.Option("--rank", "--lora_r", "--lora-r", help="r of the energies.")] = 64,
    interval: Annotated[
        tuple[float, float], typer.Option(help="Low and high: count the singular values between them.")
    ] = (0.1, 1.1),
    targets: Targets = "all-linear",
    layers: Annotated[bool, typer.Option("--layers", help="Print each layer too.")] = False,
    output: Annotated[Path | None, typer.Option("--output", help="Draw them: a .png, .svg or .pdf file.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the picture at --output.")] = False,
    device: Device = None,
    procs: Procs = 1,
    gguf_file: GGUFFile = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Measure the singular values of a model's weights; they are kept in the store."""
    from milora.analysis.spectrum import MEASURES
    from milora.analysis.spectrum import spectrum as measure
    from milora.analysis.spectrum_picture import check_picture, draw
    from milora.decompositions import default_store
    from milora.models.atomic import check_free
    from milora.models.load import usable_device
    from milora.models.targets import parse_targets
    from milora.models.weights import linear_weights

    screen: Output = context.obj
    output = None if output is None else output.expanduser()
    if output is not None:
        check_picture(output)
        check_free(output, overwrite, file=True)
    found = linear_weights(model, parse_targets(targets), gguf_file=gguf_file, trust_remote_code=trust_remote_code)
    if found.note:
        screen.note(f"weights found by their names: {found.note}")
    with filling(screen) as show:
        measured = measure(found.weights, default_store(), rank=rank, interval=interval,
                           device=usable_device(device), procs=procs, show=show)  # fmt: skip
    if output is not None:
        draw(measured, output, title=Path(model).name)
    record = {"model": model, "found_by": found.found_by, **measured.as_dict(), "picture": output and str(output)}
    rows = [
        [name if over == "median" else "", over, *(t[m][over] for m in MEASURES)]
        for name, t in record["module_types"].items()
        for over in ("median", "min", "max")
    ]
    shown = _tables(["module", "over"], rows, rank, interval)
    if layers:
        each = [[layer["name"], *(layer[m] for m in MEASURES)] for layer in record["layers"]]
        shown += _tables(["layer"], each, rank, interval)
    screen.result(record, Group(f"{len(measured.layers)} matrices", "", *shown), essence=str(output or ""))


def _tables(named: list[str], rows: list[list[Any]], rank: int, interval: tuple[float, float]) -> list[Any]:
    """Two tables, which fit a terminal where one would not: of the values, and of what they are shares of."""
    low, high = interval
    size = ["sigma_1", "median", "sigma_k", "condition", "eff.rank", "stable"]
    share = [f"energy bottom {rank}", f"energy top {rank}", f"in {low:g} to {high:g}", "deficient"]
    first, split = len(named), len(named) + len(size)
    short = [[*row[:first], *(_three_digits(value) for value in row[first:])] for row in rows]
    return [
        table([*named, *size], [row[:split] for row in short]),
        "",
        table([*named, *share], [row[:first] + row[split:] for row in short]),
        "",
    ]


def _three_digits(value: Any) -> Any:
    return float(f"{value:.3g}") if isinstance(value, float) else value

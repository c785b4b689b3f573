"""``milora analyse RUN_OR_ADAPTER``: where in the weights a tuned model's changes lie, and how large they are."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from milora.cli.checkpoint_flags import Device, GGUFFile, Targets, TrustRemoteCode
from milora.cli.evaluate import AdapterBase, Force
from milora.cli.output import Output, table
from milora.cli.progress import progress

SIZES = ("norm_dW", "relative", "amplification", "intruders")
PHI = [(side, part) for side in ("left", "right") for part in ("top", "bottom", "random")]


def analyse(
    context: typer.Context,
    run_or_adapter: Annotated[str | None, typer.Argument(help="A run folder, or an adapter's folder.")] = None,
    model_name_or_path: AdapterBase = None,
    tuned: Annotated[Path | None, typer.Option(help="A whole tuned model, compared with --model_name_or_path.")] = None,
    r: Annotated[
        int | None, typer.Option("--r", "--lora_r", "--lora-r", help="Of all subspaces; else the adapter's, or 32.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the random directions.")] = 0,
    targets: Targets = "all-linear",
    device: Device = None,
    gguf_file: GGUFFile = None,
    trust_remote_code: TrustRemoteCode = False,
    force: Force = False,
    layers: Annotated[bool, typer.Option("--layers", help="Print each layer too.")] = False,
    output: Annotated[Path | None, typer.Option("--output", help="A .json file, in place of the run's.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what was measured before.")] = False,
) -> None:
    """Measure the changes of the weights: norms, subspaces, amplification, spectra, intruder dimensions.

    A run keeps them in its folder, as analysis.json.
    """
    from milora.analysis import analyse as measure
    from milora.errors import MiloraError
    from milora.models.load import usable_device
    from milora.models.targets import parse_targets
    from milora.runs import RunFolder, refresh_card
    from milora.runs.changed import changes_of
    from milora.runs.folder import write_json

    screen: Output = context.obj
    run = RunFolder(run_or_adapter) if run_or_adapter is not None else None
    target = (output and output.expanduser()) or (run.analysis_file if run is not None and run.holds_run else None)
    if target is not None and target.exists() and not overwrite:
        raise MiloraError(f"analyse: {target} exists; --overwrite replaces it")
    changes = changes_of(
        run_or_adapter, model_name_or_path=model_name_or_path, tuned=tuned, targets=parse_targets(targets),
        gguf_file=gguf_file, trust_remote_code=trust_remote_code, force=force,
    )  # fmt: skip
    for name, what in changes.skipped:
        screen.note(f"not measured: {name}, {what}")
    with progress(screen) as show:
        record = measure(
            changes, r, seed, device=usable_device(device),
            progress=lambda done, total: show("matrices", done, total),
        )  # fmt: skip
    if target is not None:
        write_json(target, record)
    if run is not None and run.holds_run and target == run.analysis_file:
        refresh_card(run)
    screen.result(record, _tables(record, layers), essence=str(target or ""))


def _tables(record: dict[str, Any], layers: bool) -> Any:
    from rich.console import Group

    whole = record["summary"]
    groups = [("type", {**whole["by_type"], "all": whole})]
    groups += [("layer", whole["by_layer"])] if layers else []
    shown = []
    for over, means in groups:
        sizes = [[name, m["matrices"], *_short(m[key] for key in SIZES)] for name, m in means.items()]
        phi = [[name, *_short(m["phi"][side][part] for side, part in PHI)] for name, m in means.items()]
        shown += [
            table([over, "matrices", "||dW||", "relative", "amplification", "intruders"], sizes),
            "",
            table([over, *(f"{side} {part}" for side, part in PHI)], phi, title=f"phi at r = {record['r']}"),
            "",
        ]
    return Group(*shown)


def _short(numbers: Iterable[float | None]) -> list[float | None]:
    return [None if n is None else float(f"{n:.3g}") for n in numbers]

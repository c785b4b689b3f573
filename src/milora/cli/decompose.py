"""``milora decompose MODEL``: decompose a checkpoint's weights into the store, without building the model."""

from typing import Annotated, Any

import typer

from milora.cli.checkpoint_flags import Device, GGUFFile, Model, Procs, Targets, TrustRemoteCode
from milora.cli.output import Output, table
from milora.cli.progress import filling


def decompose(
    context: typer.Context,
    model: Model,
    rank: Annotated[int, typer.Option("--rank", "--lora_r", "--lora-r", help="Triplets of each matrix.")] = 64,
    part: Annotated[str, typer.Option(help="bottom, top, all (both of them) or full.")] = "bottom",
    targets: Targets = "all-linear",
    device: Device = None,
    procs: Procs = 1,
    strict: Annotated[bool, typer.Option("--strict", help="Prove that no triplet was missed; slower.")] = False,
    gguf_file: GGUFFile = None,
    trust_remote_code: TrustRemoteCode = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the matrices and their bytes in the store.")] = False,
) -> None:
    """Decompose a model's weights once, so that every later run reads them from the store."""
    from milora.decompositions.fill_plan import needed_store, parts_named, planned
    from milora.decompositions.workers import fill
    from milora.models.load import usable_device
    from milora.models.targets import parse_targets
    from milora.models.weights import linear_weights

    output: Output = context.obj
    parts = parts_named(part, rank)
    found = linear_weights(model, parse_targets(targets), gguf_file=gguf_file, trust_remote_code=trust_remote_code)
    plan = planned(found.weights, parts)
    if found.note:
        output.note(f"weights found by their names: {found.note}")
    asked = {"model": model, "part": part, "rank": None if part == "full" else rank, "found_by": found.found_by}
    if dry_run:
        _show_plan(output, asked, plan)
        return
    store, device = needed_store(), usable_device(device)
    with filling(output) as show:
        done = fill(found.weights, parts, store, device=device, procs=procs, strict=strict, show=show)
    if done is None:
        return  # another rank prints the result
    output.result({**asked, "device": device, "strict": strict, **done.as_dict()}, _summary(done), essence=done.store)
    if done.problem:
        if output.mode != "json":
            output.error(done.problem)
        raise typer.Exit(done.exit_code)


def _show_plan(output: Output, asked: dict[str, Any], plan: list[dict[str, Any]]) -> None:
    total = sum(row["store_bytes"] for row in plan)
    title = f"{len(plan)} matrices, {total / 1e6:,.1f} MB in the store"
    rows = [[row["name"], row["out"], row["in"], row["dtype"], row["store_bytes"]] for row in plan]
    human = table(["matrix", "out", "in", "dtype", "bytes in the store"], rows, title=title)
    output.result({**asked, "matrices": plan, "store_bytes": total}, human, "\n".join(row["name"] for row in plan))


def _summary(done: Any) -> Any:
    rows: list[list[Any]] = [
        ["matrices", done.matrices],
        ["computed", done.computed],
        ["found in the store", done.found],
        ["seconds", done.seconds],
        ["matrices per second", done.matrices_per_second],
        ["algorithms", ", ".join(f"{name} {count}" for name, count in sorted(done.algorithms.items()))],
        *([["refused and computed again", str(done.refused)]] if done.refused else []),
        *([f"worst {name.replace('_', ' ')}", value] for name, value in done.worst.items()),
        ["processes", done.processes],
        ["peak memory of a process, MB", done.peak_memory_bytes / 1e6],
        ["  of it before the first matrix, MB", done.memory_before_bytes / 1e6],
        ["largest matrix, MB", done.largest_matrix_bytes / 1e6],
        *([["peak memory on the GPU, MB", done.peak_gpu_memory_bytes / 1e6]] if done.peak_gpu_memory_bytes else []),
        ["store", done.store],
    ]
    return table(["what", "value"], rows)

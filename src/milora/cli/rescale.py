"""``milora rescale MODEL --output FOLDER``: the same function with smaller weights and larger norm gains."""

from typing import Annotated

import typer
from rich.console import Group

from milora.cli.checkpoint_flags import Model
from milora.cli.export import Destination, Overwrite, ShardSize
from milora.cli.output import Output, table


def rescale(
    context: typer.Context,
    model: Model,
    output: Destination,
    scale: Annotated[float | None, typer.Option(help="Divide q, k, v and up by this power of two; else by 8.")] = None,
    gate_scale: Annotated[
        float | None,
        typer.Option("--gate_scale", "--gate-scale", help="Divide gate by this, down by gate_scale / scale."),
    ] = None,
    to_std: Annotated[
        float | None,
        typer.Option("--to_std", "--to-std", help="Choose the powers of two for this standard deviation."),
    ] = None,
    max_shard_size: ShardSize = "5GB",
    check: Annotated[bool, typer.Option("--check/--no-check", help="Compare the logits of both models.")] = True,
    overwrite: Overwrite = False,
) -> None:
    """Write a Llama-like model whose weights are smaller and whose norm gains are larger: the same logits.

    LLaMA-2's weights have a standard deviation of about 0.024. How far methods on singular vectors step depends on it.
    """
    from milora.errors import MiloraError
    from milora.models.rescale import SCALE, largest_difference
    from milora.models.rescale import rescale as write

    screen: Output = context.obj
    if to_std is not None and (scale, gate_scale) != (None, None):
        raise MiloraError("to_std: got it with scale or gate_scale, allowed alone")
    written = write(
        model, output, scale=SCALE if scale is None else scale, gate_scale=gate_scale, to_std=to_std,
        max_shard_size=max_shard_size, overwrite=overwrite,
    )  # fmt: skip
    record = {"model": model, **written.as_dict(), "difference": largest_difference(model, output) if check else None}
    divisors = record["divisors"]
    rows = [[k, divisors.get(k, 1.0), s["before"], s["after"]] for k, s in record["std"].items()]
    shown = [table(["weights", "divided by", "std before", "std after"], rows), ""]
    shown += [f"norm gains times {', '.join(f'{g:g} ({name})' for name, g in record['gains'].items())}"]
    if check:
        shown += [
            f"largest difference of a logit {record['difference']['logit']:.3g}, KL {record['difference']['kl']:.3g}"
        ]
    screen.result(record, Group(*shown), essence=str(output))

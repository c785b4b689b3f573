"""``milora merge ADAPTER --model_name_or_path M --output DIR``: `milora export --to merged`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from milora.cli.export import Base, Check, Destination, Force, Overwrite, ShardSize, adapter_folder, export
from milora.cli.output import Output
from milora.errors import MiloraError


def merge(
    context: typer.Context,
    adapter: Annotated[Path, typer.Argument(help="A run folder or an adapter's folder.")],
    model_name_or_path: Base,
    output: Destination,
    max_shard_size: ShardSize = "5GB",
    check: Check = None,
    force: Force = False,
    high_precision: Annotated[
        bool,
        typer.Option(
            "--high_precision",
            "--high-precision",
            help="Trained on a quantised base: merge into the high-precision one instead.",
        ),
    ] = False,
    text: Annotated[
        Path | None, typer.Option("--text", help="A text on which the change of the logits, or the KL, is measured.")
    ] = None,
    onto: Annotated[
        str | None,
        typer.Option(
            "--onto", help="Add the change to this model's weights in place of the base's: its instruct model."
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Add an adapter into the base model's weights (in float32, cast once) and write the whole model.

    An adapter of a quantised base is merged into the quantised base and quantised again; what that costs is printed.
    With --onto, what the base model has learnt goes to another model of its shapes: W = W_onto + (W_tuned - W_base).
    """
    from milora.adapters import merge_quantised
    from milora.analysis.texts import read_text
    from milora.models.load import stored_quantization
    from milora.runs.tuned import quantised_base

    if onto is not None:
        if text is not None or check or high_precision:
            raise MiloraError("--onto: got --text, --check or --high_precision, allowed none: nothing is compared")
        return _onto(context.obj, adapter, model_name_or_path, onto, output, max_shard_size, overwrite, force)
    quantization, dtype = quantised_base(adapter)
    stored = stored_quantization(model_name_or_path)
    if stored is None and (quantization is None or (high_precision and text is None)):
        return export(
            context, adapter, model_name_or_path, output, to="merged", text=None if text is None else str(text),
            max_shard_size=max_shard_size, check=check, force=force, overwrite=overwrite,
        )  # fmt: skip
    show: Output = context.obj
    folder, common = adapter_folder(adapter), {"overwrite": overwrite, "force": force}
    cost = merge_quantised(
        folder,
        model_name_or_path,
        output,
        quantization=quantization,
        dtype=dtype,
        high_precision=high_precision,
        text=None if text is None else read_text(text),
        **common,
    )
    quantization = stored or quantization
    record = {"output": str(output), "quantization": None if high_precision else quantization, "cost": cost.as_dict()}
    lines = _report(output, quantization, high_precision, cost)
    if not high_precision:
        where = (
            f"with the model that {model_name_or_path} was made of" if stored else "merges into the unquantised base"
        )
        lines.append(f"recommended: --high_precision {where}, where the update is not rounded away")
    show.result(record, "\n".join(lines), essence=str(output))


def _onto(
    show: Output, adapter: Path, base: str, onto: str, output: Path, max_shard_size: str, overwrite: bool, force: bool
) -> None:
    from milora.adapters.merge import merge as write
    from milora.runs.tuned import quantised_base

    if quantised_base(adapter)[0] is not None:
        raise MiloraError("--onto: got an adapter of a quantised base, allowed one of high-precision weights")
    written, _ = write(
        adapter_folder(adapter),
        base,
        output,
        max_shard_size=max_shard_size,
        overwrite=overwrite,
        force=force,
        onto=onto,
    )
    record = {"output": str(written), "base": base, "onto": onto}
    show.result(record, f"{written}: {onto} with what was trained on {base}", essence=str(written))


def _report(output: Path, quantization: str | None, high_precision: bool, cost: Any) -> list[str]:
    lines = [f"{output}: written as a whole {'high-precision' if high_precision else quantization} model"]
    if not high_precision and not cost.layers:
        lines.append("what quantising the merged weights again costs is not known for this quantisation")
    elif not high_precision:
        name, worst = cost.worst
        lines += [
            f"quantising the merged weights again moves them by {cost.total:.2%} of their norm"
            f" (worst: {name}, {worst:.2%}), {cost.of_update:.2g} times the size of the update that was trained",
        ]
    if cost.logits:
        c = cost.logits
        lines.append(
            f"logits on {c.tokens} tokens: moved by {c.mean:.3g} on average, {c.largest:.3g} at most;"
            f" KL {c.kl:.3g} nats per token from the adapter on its {quantization} base;"
            f" loss {c.loss:.4f} there, {c.merged_loss:.4f} merged"
        )
    return lines

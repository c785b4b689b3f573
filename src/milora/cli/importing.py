"""``milora import ADAPTER --model_name_or_path M --output DIR``: an adapter trained by PEFT becomes one of ours."""

from pathlib import Path
from typing import Annotated, Any

import typer

from milora.cli.export import Base, Check, Destination, Overwrite, agreement_line
from milora.cli.output import Output
from milora.errors import MiloraError


def import_(
    context: typer.Context,
    adapter: Annotated[Path, typer.Argument(help="The folder of a LoRA, MiCA or PiSSA adapter of PEFT.")],
    model_name_or_path: Base,
    output: Destination,
    initial: Annotated[
        Path | None, typer.Option("--initial", help="For PiSSA: the adapter as it was before training.")
    ] = None,
    check: Check = None,
    overwrite: Overwrite = False,
) -> None:
    """Bring in an adapter that PEFT trained: the same change of the weights, in the form of this package."""
    from milora.adapters.peft_import import import_adapter

    show: Output = context.obj
    done = import_adapter(adapter, model_name_or_path, output, initial=initial, overwrite=overwrite)
    record: dict[str, Any] = {"output": str(done.path), "method": done.method, "trains": done.trains}
    record |= _checked(adapter, model_name_or_path, done.path, check, repeatable=initial is None)
    lines = [f"{done.path}: written as {done.method}; what trains on: {done.trains}"]
    if done.method == "pissa":
        record["start_distance"] = done.start_distance
        lines.append(f"farthest from its start: {done.start_distance:.3g} of the start's norm")
        if done.start_distance > 1:
            lines.append("a factor is farther from its start than the start is from zero: is this the right base?")
    lines.append(agreement_line(record["check"]) if record["check"] else f"not checked: {record['not_checked']}")
    show.result(record, "\n".join(lines), essence=str(done.path))


def _checked(adapter: Path, base: str, written: Path, wanted: bool | None, repeatable: bool) -> dict[str, Any]:
    from milora.adapters.agreement import fits_in_memory, import_agreement
    from milora.models.load import load_model

    why = "--no-check" if wanted is False else "" if repeatable else "PEFT makes another random start at each load"
    if wanted is None and not why and not fits_in_memory(base, copies=2):
        why = "the model in float32 does not fit this machine's memory"
    if not why:
        try:
            return {"check": import_agreement(adapter, load_model(base, dtype="float32"), written).as_dict()}
        except MiloraError as error:
            if wanted:
                raise
            why = str(error)
    return {"check": None, "not_checked": why}

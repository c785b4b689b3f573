"""``milora methods [--model_name_or_path M]``: the methods there are, their formulas, what each would train."""

from typing import Annotated, Any

import typer
from rich.console import Group

from milora.cli.checkpoint_flags import Device, Procs
from milora.cli.output import Output, table
from milora.cli.progress import filling


def methods(
    context: typer.Context,
    model_name_or_path: Annotated[
        str | None,
        typer.Option("--model_name_or_path", "--model-name-or-path", help="Count for this model."),
    ] = None,
    lora_r: Annotated[int, typer.Option("--lora_r", "--lora-r", help="The rank to count for.")] = 32,
    target_modules: Annotated[
        str, typer.Option("--target_modules", "--target-modules", help="all-linear, or names with commas.")
    ] = "all-linear",
    predict: Annotated[
        bool | None,
        typer.Option(
            "--predict/--no-predict",
            help="How far the first steps go beside LoRA's, from the model's weights; by default where that is quick.",
        ),
    ] = None,
    device: Device = None,
    procs: Procs = 1,
) -> None:
    """List the methods; with a model (its config is enough), also how many numbers each would train.

    Where the model's weights are here, also how far each method's first steps move them beside LoRA's at the same
    learning rate, by module type.
    """
    from milora.adapters.build import FULL, PEFT_METHODS
    from milora.methods import METHODS

    output: Output = context.obj
    equations = {name: method.equation for name, method in METHODS.items()} | PEFT_METHODS
    equations[FULL] = "every weight of the model trains"
    if model_name_or_path is None:
        record = [{"method": name, "equation": equation} for name, equation in equations.items()]
        output.result(record, table(["method", "equation"], equations.items()), essence="\n".join(equations))
        return
    counts = _counts(model_name_or_path, lora_r, target_modules)
    predicted = _predicted(output, model_name_or_path, lora_r, target_modules, predict, device, procs)
    record = [
        {
            "method": name,
            "equation": equation,
            "trainable": count,
            "share": count and count / (counts[FULL] or 1),
            "predicted": predicted.get(name),
        }
        for name, equation in equations.items()
        for count in [counts[name]]
    ]
    rows = [[r["method"], r["trainable"], f"{r['share']:.3%}" if r["share"] else None, r["equation"]] for r in record]
    shown = table(["method", f"trainable, r = {lora_r}", "share", "equation"], rows)
    output.result(record, Group(shown, *_ratio_table(predicted)))


def _predicted(
    output: Output, model: str, r: int, targets: str, predict: bool | None, device: str | None, procs: int
) -> dict[str, Any]:
    """The ratios of each method; empty where the weights are not here or not to be read."""
    from milora.analysis.prediction import checkpoint_ratios, weights_at_hand
    from milora.decompositions import default_store
    from milora.models.load import usable_device
    from milora.models.targets import parse_targets

    weights, why = weights_at_hand(model, parse_targets(targets), predict)
    if why:
        output.note(f"first steps are not predicted: {why}")
    if not weights:
        return {}
    with filling(output) as show:
        return checkpoint_ratios(weights, default_store(), r=r, device=usable_device(device), procs=procs, show=show)


def _ratio_table(predicted: dict[str, Any]) -> list[Any]:
    """The predicted ratios for people, without the methods that have none."""
    there = {name: found for name, found in predicted.items() if found}
    if not there:
        return []
    types = list(dict.fromkeys(kind for found in there.values() for kind in found["by_type"]))
    rows = [
        [name, _short(found["all"]), *(_short(found["by_type"].get(kind)) for kind in types)]
        for name, found in there.items()
    ]
    title = "||dW|| of the first steps beside LoRA's at the same learning rate, predicted"
    return ["", table(["method", "all", *types], rows, title)]


def _short(ratio: float | None) -> float | None:
    return None if ratio is None else float(f"{ratio:.3g}")


def _counts(model_name_or_path: str, r: int, target_modules: str) -> dict[str, int | None]:
    """Numbers that each method would train; None where a matrix has fewer than r singular triplets."""
    from milora.adapters import attach, peft_config
    from milora.adapters.build import FULL, PEFT_METHODS
    from milora.methods import METHODS, Choice
    from milora.models.targets import parse_targets

    targets = parse_targets(target_modules)
    settings: dict[str, Any] = {"lora_r": r, "target_modules": targets}
    counts: dict[str, int | None] = {}
    shapes: list[tuple[int, int]] = []
    for name in PEFT_METHODS:
        # AdaLoRA starts with half as much again as it keeps, and refuses to be built without a length.
        own = {"total_step": 1000, "init_r": -(-3 * r // 2)} if name == "adalora" else {}
        config: Any = peft_config(settings | {"method": name, "method_settings": own})
        model = attach(_empty_model(model_name_or_path), config)
        counts[name] = sum(p.numel() for p in model.parameters() if p.requires_grad)
        if name == "lora":
            layers: list[Any] = [m for m in model.modules() if "default" in getattr(m, "lora_A", {})]
            shapes = [(layer.out_features, layer.in_features) for layer in layers]
    for name, method in METHODS.items():
        fits = not method.ranked or all(r <= min(shape) for shape in shapes)
        choice = Choice(r, 1.0)
        counts[name] = sum(method.count(out, in_, choice) for out, in_ in shapes) if fits else None
    counts[FULL] = sum(p.numel() for p in _empty_model(model_name_or_path).parameters())
    return counts


def _empty_model(model_name_or_path: str) -> Any:
    """The model's layers with their shapes and without weights: its configuration is all that is read."""
    from milora.errors import MiloraError
    from milora.models.load import empty_model

    try:
        return empty_model(model_name_or_path)
    except (MiloraError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise MiloraError(f"model_name_or_path: got {model_name_or_path!r}: {reason}") from error

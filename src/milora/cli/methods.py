"""``milora methods [--model_name_or_path M]``: the methods there are, their formulas, what each would train."""

from typing import Annotated, Any

import typer

from milora.cli.output import Output, table


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
) -> None:
    """List the methods; with a model (its config is enough), also how many numbers each would train."""
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
    record = [
        {"method": name, "equation": equation, "trainable": count, "share": count and count / (counts[FULL] or 1)}
        for name, equation in equations.items()
        for count in [counts[name]]
    ]
    rows = [[r["method"], r["trainable"], f"{r['share']:.3%}" if r["share"] else None, r["equation"]] for r in record]
    output.result(record, table(["method", f"trainable, r = {lora_r}", "share", "equation"], rows))


def _counts(model_name_or_path: str, r: int, target_modules: str) -> dict[str, int | None]:
    """Numbers that each method would train; None where a matrix has fewer than r singular triplets."""
    from milora.adapters import attach, peft_config
    from milora.adapters.build import FULL, PEFT_METHODS
    from milora.methods import METHODS, Choice

    targets = target_modules if "," not in target_modules else target_modules.split(",")
    if targets != "all-linear" and isinstance(targets, str):
        targets = [targets]
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

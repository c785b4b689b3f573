"""The model of a run at a step: on its base, or with what it has learnt carried onto another model of its shapes.

    W = W_onto + (W_tuned - W_base)

MiCA (arXiv 2604.01694) trains a base model and asks its instruct model so. The difference is added to a copy of the
other model, in float32 and cast once, as `milora merge --onto` does; of an adapter it is the change of each linear
weight, of full fine-tuning that of every parameter.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from milora.adapters import load_adapter, model_changes
from milora.adapters.base_layers import keeps_transposed
from milora.adapters.delta import Delta
from milora.errors import MiloraError
from milora.models.load import empty_model, load_model
from milora.recipes.schema import Recipe
from milora.runs import RunFolder
from milora.training.shared_base import SharedBase


@contextmanager
def tuned_at(
    run: RunFolder, step: int | None, recipe: Recipe, base: SharedBase, onto: SharedBase | None = None
) -> Iterator[tuple[Any, Any]]:
    """Yield the model of a run at a step, and its base where no adapter can be disabled.

    Args:
        run: the run.
        step: of a checkpoint; None is the run's end.
        recipe: of the run.
        base: its base model.
        onto: a model of the same shapes that a copy of carries the change; it is the base then.

    Raises:
        MiloraError: there is no checkpoint of that step; the change cannot be carried.
    """
    if onto is not None:
        with tuned_at(run, step, recipe, base) as (tuned, whole_base):
            check_carried(recipe)
            model = _of_full(run, recipe, tuned, base, onto) if whole_base is not None else _of_adapter(tuned, onto)
        yield model, onto.model
        return
    folder = run.path / f"checkpoint-{step}" if step is not None else None
    if folder is not None and not folder.is_dir():
        raise MiloraError(f"measure.at: {run.path} holds no checkpoint of step {step}")
    if recipe.method == "full":
        where = {"dtype": recipe.base_dtype, "device": recipe.device, "trust_remote_code": recipe.trust_remote_code}
        yield load_model(str(folder or run.model), **where), base.model
        return
    if not base.serves(recipe):  # it writes into its base: a model of its own, which nobody gets back
        own = load_model(
            recipe.model_name_or_path, dtype=recipe.base_dtype, device=recipe.device, gguf_file=recipe.gguf_file,
            trust_remote_code=recipe.trust_remote_code, quantization=recipe.base_quantization,
        )  # fmt: skip
        yield load_adapter(own, folder or run.own_adapter()), None
        return
    with base.lent() as model:
        yield load_adapter(model, folder or run.own_adapter()), None


def asked_on(recipe: Recipe, onto: str | None) -> Recipe:
    """The recipe with the name of the model that is asked: its base, or the one that carries the change."""
    return recipe if onto is None else recipe.model_copy(update={"model_name_or_path": onto, "gguf_file": None})


def shown_name(model_name_or_path: str | None) -> str | None:
    """A model's name as records show it: of a local folder its last part."""
    if model_name_or_path is None or not Path(model_name_or_path).expanduser().exists():
        return model_name_or_path
    return Path(model_name_or_path).name


def check_shapes(recipe: Recipe, onto: str) -> None:
    """Whether another model has the base's parameters, by their configurations alone; vocabularies may differ.

    Raises:
        MiloraError: it cannot be found; a parameter that one of them lacks, or of another shape.
    """
    if recipe.gguf_file is not None:
        return
    names = (recipe.model_name_or_path, onto)
    mine, theirs = (_shapes(empty_model(name, trust_remote_code=recipe.trust_remote_code)) for name in names)
    differing = next((name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)), None)
    if differing is not None:
        got = f"{theirs.get(differing)} in {onto}, {mine.get(differing)} in {recipe.model_name_or_path}"
        raise MiloraError(f"onto: {differing} is {got}, allowed a model of the base's shapes")


def _shapes(model: Any) -> dict[str, tuple[int, ...]]:
    ends = {id(m.weight) for m in (model.get_input_embeddings(), model.get_output_embeddings()) if m is not None}
    return {name: tuple(p.shape) for name, p in model.named_parameters() if id(p) not in ends}


def other_base(recipe: Recipe, onto: str) -> SharedBase:
    """The model that carries the changes of a recipe's runs, loaded as their base is.

    Raises:
        MiloraError: what `check_carried` refuses.
    """
    check_carried(recipe)
    return SharedBase(asked_on(recipe, onto))


def check_carried(recipe: Recipe) -> None:
    """Whether what a run of a recipe learns is a change of linear weights, or a whole model.

    Raises:
        MiloraError: a quantised base, weights that train in full beside an adapter.
    """
    if recipe.base_quantization is not None:
        raise MiloraError(f"onto: got a base quantised as {recipe.base_quantization}, allowed high-precision weights")
    if recipe.method != "full" and (recipe.bias != "none" or recipe.modules_to_save):
        trained = f"bias {recipe.bias}" if recipe.bias != "none" else f"modules_to_save {recipe.modules_to_save}"
        raise MiloraError(f"onto: got {trained}, allowed changes of linear weights alone, or full fine-tuning")


@torch.no_grad()
def _of_adapter(tuned: Any, onto: SharedBase) -> Any:
    """A copy of the other model with the changes of an adapter on its base."""
    changes, model = model_changes(tuned), copy.deepcopy(onto.model)
    if changes.skipped:
        name, what = changes.skipped[0]
        raise MiloraError(f"onto: {name} is {what}, allowed changes of linear weights alone")
    layers = dict(model.named_modules())
    for module, _, change in changes:
        layer = layers.get(module)
        shape = change.shape if isinstance(change, Delta) else tuple(change.shape)
        W = None if layer is None else (layer.weight.T if keeps_transposed(layer) else layer.weight)  # (out, in)
        if W is None or tuple(W.shape) != tuple(shape):
            raise MiloraError(f"onto: {module} is not there or of another shape, allowed a model of the base's shapes")
        dW = change.dense() if isinstance(change, Delta) else change
        W.copy_(W.to(dW.dtype) + dW.to(W.device))
    return model.eval()


@torch.no_grad()
def _of_full(run: RunFolder, recipe: Recipe, tuned: Any, base: SharedBase, onto: SharedBase) -> Any:
    """A copy of the other model with the difference of every parameter."""
    made_on = run.provenance().get("base_fingerprint")
    if run.recipe().base_dtype == recipe.base_dtype and made_on not in (None, base.fingerprint):
        raise MiloraError(f"onto: {run.path} was trained on a base with fingerprint {made_on}, got {base.fingerprint}")
    model = copy.deepcopy(onto.model)
    before, after, other = (dict(m.named_parameters()) for m in (base.model, tuned, model))
    if differing := sorted(before.keys() ^ other.keys()):
        raise MiloraError(f"onto: {differing[0]} is in one model and not in the other, allowed the base's shapes")
    for name, W in other.items():
        if W.shape != after[name].shape:
            raise MiloraError(f"onto: {name} is of another shape, allowed a model of the base's shapes")
        W.copy_(W.float() + (after[name].float() - before[name].float()))
    return model.eval()

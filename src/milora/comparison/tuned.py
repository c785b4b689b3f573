"""The model of a run at a step: on its base, or with what it has learnt carried onto another model of its shapes.

    W = W_onto + (W_tuned - W_base)

MiCA (arXiv 2604.01694) trains a base model and asks its instruct model so. An adapter whose change is a sum on the
weights is put onto the other model as it is; of full fine-tuning the difference is added, in float32 and cast once.
`milora merge --onto` writes the same model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from milora.adapters import load_adapter
from milora.adapters.merge_shards import transferable
from milora.errors import MiloraError
from milora.models.load import load_model
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
        onto: a model of the same shapes that carries the change in its place; it is the base then.

    Raises:
        MiloraError: there is no checkpoint of that step; the change cannot be carried.
    """
    folder = run.path / f"checkpoint-{step}" if step is not None else None
    if folder is not None and not folder.is_dir():
        raise MiloraError(f"measure.at: {run.path} holds no checkpoint of step {step}")
    if recipe.method == "full":
        where = {"dtype": recipe.base_dtype, "device": recipe.device, "trust_remote_code": recipe.trust_remote_code}
        tuned = load_model(str(folder or run.model), **where)
        if onto is not None:
            _carry(tuned, base.model, onto.model)
        yield tuned, (onto or base).model
        return
    adapter = folder or run.own_adapter()
    if onto is not None:
        _check(adapter, run, recipe, base)
        with onto.lent() as model:
            yield load_adapter(model, adapter, force=True), None
        return
    if not base.serves(recipe):
        with SharedBase(recipe).lent() as model:
            yield load_adapter(model, adapter), None
        return
    with base.lent() as model:
        yield load_adapter(model, adapter), None


def other_base(recipe: Recipe, onto: str) -> SharedBase:
    """The model that carries the changes of a recipe's runs, loaded as their base is.

    Raises:
        MiloraError: a quantised base, whose weights a change cannot be added to.
    """
    if recipe.base_quantization is not None:
        raise MiloraError(f"onto: got a base quantised as {recipe.base_quantization}, allowed high-precision weights")
    return SharedBase(recipe.model_copy(update={"model_name_or_path": onto, "gguf_file": None}))


def _check(adapter: str | Path, run: RunFolder, recipe: Recipe, base: SharedBase) -> None:
    """What is carried is a change alone, made on this base, and in the adapter's file whole."""
    made_on = run.provenance().get("base_fingerprint")
    if made_on not in (None, base.fingerprint):
        raise MiloraError(f"onto: {run.path} was trained on a base with fingerprint {made_on}, got {base.fingerprint}")
    try:
        file = transferable(adapter, recipe.model_name_or_path)
    except MiloraError as reason:
        raise MiloraError(f"onto: {reason}; allowed changes that are a sum on the weights") from reason
    if not getattr(file.config, "keeps_bases", True):
        raise MiloraError(f"onto: {adapter} was saved without its bases, allowed save_bases: true")


@torch.no_grad()
def _carry(tuned: Any, base: Any, onto: Any) -> None:
    """tuned + onto - base, in the place of tuned."""
    before, other = dict(base.named_parameters()), dict(onto.named_parameters())
    for name, W in tuned.named_parameters():
        if name not in other or other[name].shape != W.shape:
            raise MiloraError(f"onto: {name} is not there or of another shape, allowed a model of the base's shapes")
        W.copy_(other[name].float() + (W.float() - before[name].float()))

"""Adapters taken out of a model again: each adapted layer is replaced by the layer that stood there before."""

from __future__ import annotations

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn


def strip(model: nn.Module) -> None:
    """Take every adapter out of a model, in place; the base layers are not touched.

    Unlike PEFT's `unload` it starts from the base model, so that it also clears what a failed start has left.

    Args:
        model: the base model inside a PeftModel, or one that was adapted in part.
    """
    inside = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    adapted = [name for name, module in model.named_modules() if isinstance(module, inside)]
    outer: list[str] = []
    for name in adapted:
        if any(name.startswith(f"{above}.") for above in outer):
            continue  # a layer inside an adapted one goes with it
        outer.append(name)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, _base_of(model.get_submodule(name)))
    if hasattr(model, "peft_config"):
        del model.peft_config


def _base_of(module: nn.Module) -> nn.Module:
    if isinstance(module, AuxiliaryTrainingWrapper):
        return _base_of(module.original_module)
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module

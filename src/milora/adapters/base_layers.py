"""The layers that an adapter can stand on, and which way round they keep their weights."""

from __future__ import annotations

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D


def is_linear(module: nn.Module) -> bool:
    """Whether a module, or what an adapter stands on, is a linear layer that keeps its weight as numbers."""
    module = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    return isinstance(module, nn.Linear | Conv1D)


def keeps_transposed(base_layer: nn.Module) -> bool:
    """Whether the weight is (in, out)."""
    return isinstance(base_layer, Conv1D | nn.Embedding)


def features(base_layer: nn.Module) -> tuple[int, int]:
    """(in, out) of a linear layer or an embedding."""
    if isinstance(base_layer, Conv1D | nn.Embedding):
        in_, out = getattr(base_layer.weight, "ds_shape", base_layer.weight.shape)  # ZeRO-3 keeps a flat part
        return int(in_), int(out)
    return int(base_layer.in_features), int(base_layer.out_features)  # pyright: ignore[reportArgumentType]

"""The reference adapter of TRL's preference trainers: a frozen copy of the adapter that trains.

Given a PEFT model that has an adapter already and no `ref_model`, TRL (DPO, KTO, GRPO, RLOO) adds an adapter "ref" with
the very configuration of "default" and copies every parameter whose name holds ".default." in the middle. Factors that
stand in a ParameterDict end in ".default", so that TRL would go on with a reference that was never filled. So the copy
is made here, when the adapter is added.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

_REFERENCE, _ORIGINAL = "ref", "default"


def copied_adapter(configs: Mapping[str, PeftConfig], adapter_name: str) -> str | None:
    """The adapter that a new one is to be a copy of; None for all but TRL's reference."""
    wanted = adapter_name == _REFERENCE and configs.get(_ORIGINAL) is configs[adapter_name]
    return _ORIGINAL if wanted else None


@torch.no_grad()
def copy_factors(model: nn.Module, source: str, target: str) -> None:
    """Give one adapter the factors of another of the same configuration, and the places of a scattered core."""
    for layer in (m for m in model.modules() if isinstance(m, BaseTunerLayer)):
        for name in (*layer.adapter_layer_names, *layer.other_param_names):
            held = getattr(layer, name)
            if source in held and target in held and isinstance(held[target], torch.Tensor):
                held[target].copy_(held[source])

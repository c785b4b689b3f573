"""Adapters on quantised bases: whose weight is decomposed, and how a merged weight is taken back.

The bracket s (L R - L0 R0) is zero at the start whatever L0 and R0 are, so they need not be the quantised weight's
own. Where the checkpoint's weights can be read, theirs are taken: quantisation adds noise to every direction, and the
smallest singular triplets of the dequantised weight are mostly made of it.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import Any, cast

import torch
from peft.utils import resolve_quantization_backend
from torch import Tensor, nn

from milora.adapters.config import SpectralConfig
from milora.errors import MiloraError
from milora.models.quantised import QUANTIZATIONS, dequantised, quantization_of
from milora.models.weights import LinearWeight, linear_weights

# NF4 is 9 % off and int8 less; what is farther is no quantisation of this weight.
_FARTHEST = 0.5
log = logging.getLogger("milora.adapters")


def original_weights(
    model: nn.Module, targets: Mapping[str, nn.Module], config: SpectralConfig
) -> dict[str, LinearWeight]:
    """The checkpoint's own weights of the quantised targets, by name, still on the disk.

    Settles `config.decompose_from` where the base is quantised: "high_precision", or "dequantised" with an empty
    answer. Nothing is fetched: a hub's checkpoint is read where its files are here.

    Args:
        model: the base model, which knows where it was loaded from.
        targets: the base layers or adapted layers, by name.
        config: the configuration of a new adapter.

    Raises:
        MiloraError: "high_precision" is asked for, and the checkpoint cannot be read or is itself quantised.
    """
    names = [n for n, t in targets.items() if quantization_of(base_of(t)) is not None]
    if not names or config.decompose_from == "dequantised":
        return {}
    source = str(getattr(model, "name_or_path", "") or "")
    try:
        if not source:
            raise MiloraError("the model does not say where it was loaded from")
        found = {w.name: w for w in linear_weights(source, names, fetch=False).weights}
        lacking = [n for n in names if n not in found]
        if lacking:
            raise MiloraError(f"the checkpoint has no weight of its own for {lacking[0]}")
    except MiloraError as error:
        if config.decompose_from == "high_precision":
            raise MiloraError(
                f"decompose_from: got 'high_precision', which cannot be read ({error}), allowed 'dequantised'"
            ) from error
        log.info("decomposing the dequantised weights: the high-precision ones cannot be read (%s)", error)
        config.decompose_from = "dequantised"
        return {}
    log.info("decomposing the high-precision weights of %s", source)
    config.decompose_from = "high_precision"
    return found


@torch.no_grad()
def original_weight(weight: LinearWeight, base: Tensor) -> Tensor:  # (out, in)
    """Read a checkpoint's weight, onto the device of the quantised one.

    Args:
        weight: where it lies.
        base: (out, in), the dequantised weight, to see that it is the same.

    Raises:
        MiloraError: it has another shape, or is far from the dequantised one.
    """
    W = weight.load().to(base.device)
    if W.shape == base.shape:
        off = float(torch.linalg.vector_norm(W.float() - base.float()) / torch.linalg.vector_norm(W.float()))
        if off <= _FARTHEST or not bool(W.any()):
            return W
        how = f"{off:.0%} away from this base's"
    else:
        how = f"{tuple(W.shape)} and this base's {tuple(base.shape)}"
    raise MiloraError(
        f"decompose_from: {weight.name} in {weight.stored.file} is {how}; the model was not quantised from it,"
        " allowed decompose_from='dequantised'"
    )


def read_weight(base: nn.Module) -> Tensor:  # (out, in)
    """The weight of a base layer, dequantised where it is quantised.

    Raises:
        MiloraError: its quantisation cannot be undone.
    """
    if quantization_of(base) in QUANTIZATIONS:
        return dequantised(base)
    backend = resolve_quantization_backend(base)
    if backend is None:
        return cast(Tensor, base.weight)
    try:
        return backend.get_base_weight(base)
    except (TypeError, NotImplementedError) as error:
        raise MiloraError(f"base: {str(error).splitlines()[0]} Allowed: {', '.join(QUANTIZATIONS)}, HQQ") from error


def base_of(layer: Any) -> nn.Module:
    """The layer under an adapter, or the layer itself."""
    return layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer


def decomposed_from(model: Any) -> str:
    """What the newest adapter of a quantised base was made from, in words; empty for any other base."""
    config = list(model.peft_config.values())[-1]
    source = getattr(config, "decompose_from", "auto")
    return {"auto": "", "high_precision": "the checkpoint's high-precision weights"}.get(
        source, "the dequantised weights"
    )


class QuantisedWeight:
    """A quantised weight put aside while another one stands in its place: merging rounds anew, and rounding the
    dequantised weight again does not give the same numbers.

    Args:
        layer: the adapted layer, before its base weight is set.
    """

    def __init__(self, layer: Any) -> None:
        self._base: Any = base_of(layer)
        self._backend: Any = layer.quantization_backend
        # What is not known here is replaced with its whole layer (HQQ), which this holds.
        self._known = quantization_of(self._base) in QUANTIZATIONS
        self._weight: Any = self._base.weight if self._known else None
        # PEFT hands the attributes of a 4-bit weight on to the new one, and writes into them.
        self._attributes = dict(getattr(self._weight, "__dict__", {}))
        self._state = copy.copy(getattr(self._base, "state", None))

    def put_back(self, layer: Any) -> None:
        """Make it the layer's base weight again, bit for bit, on the device where the layer is now."""
        self._restore(self._base, cast(Tensor, base_of(layer).weight).device)
        layer.base_layer = self._base

    def dequantised(self, layer: Any) -> Tensor:  # (out, in)
        """The weight that it stands for; the layer keeps the one it has."""
        if not self._known:
            return self._backend.get_base_weight(self._base)
        base: Any = copy.copy(self._base)
        base._parameters = dict(base._parameters)
        self._restore(base, cast(Tensor, base_of(layer).weight).device)
        return dequantised(base)

    def _restore(self, base: Any, device: torch.device) -> None:
        if not self._known:
            return
        weight: Any = self._weight
        if self._attributes:
            weight.__dict__.clear()
            weight.__dict__.update(self._attributes)
        weight = weight if weight.device == device else weight.to(device)
        base.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight, requires_grad=False)
        if hasattr(weight, "quant_state"):
            base.quant_state = cast(Any, weight).quant_state
        if self._state is not None:
            base.state = copy.copy(self._state)
            for name in ("CB", "SCB"):
                held = getattr(base.state, name)
                setattr(base.state, name, None if held is None else held.to(device))

"""The change of each adapted weight of a model in memory, module by module; the model stays as it is.

The factors of this package's layers and of plain LoRA are taken as they stand. For any other layer of PEFT's a copy
is cast to float64 and merged there, so that W' - W does not lose the digits of a small change.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from milora.adapters.base_layers import is_linear, keeps_transposed
from milora.adapters.config import SpectralConfig
from milora.adapters.delta import INSIDE, PLAIN_STARTS, Delta
from milora.adapters.layer import SpectralLinear
from milora.adapters.quantised import base_of, read_weight
from milora.errors import MiloraError
from milora.methods import get_method
from milora.models.changes import Changes, at_least_float32
from milora.models.quantised import quantization_of
from milora.models.weights import LinearWeight, linear_weights


def model_changes(model: Any, base: str | Path | None = None) -> Changes:
    """The changes that the active adapters of a model make, module by module.

    Args:
        model: a model with adapters, unmerged (this package's may be merged).
        base: the base's checkpoint, from which W is read where the adapter's start rewrote the weights in memory
            (PiSSA, OLoRA and others of PEFT's); any other model needs none.

    Raises:
        MiloraError: no adapter on a linear weight; such a start without `base`; from reading: merged adapters of
            PEFT's, a layer that cannot be merged.
    """
    layers = {name.removeprefix(INSIDE): m for name, m in model.named_modules() if isinstance(m, BaseTunerLayer)}
    active = {name: names for name, layer in layers.items() if (names := _active(layer))}
    modules = [name for name in active if _is_matrix(layers[name])]
    if not modules:
        raise MiloraError("model: its active adapters change no linear weight")
    configs = getattr(model, "peft_config", {})
    used = {name for names in active.values() for name in names}
    originals = _originals(modules, [configs[name] for name in sorted(used) if name in configs], base)

    def read(module: str) -> tuple[Tensor, Tensor | Delta]:
        with torch.no_grad():
            original = originals[module].load() if originals else None
            return _change(module, layers[module], active[module], original)

    ranks = {adapter_rank(configs[name]) for name in used if name in configs}
    whole = [n.removeprefix(INSIDE) for n, m in model.named_modules() if isinstance(m, AuxiliaryTrainingWrapper)]
    skipped = [
        *((name, "no linear layer") for name in active if name not in modules),
        *((name, "trained as a whole") for name in whole),
    ]
    return Changes(modules, read, ranks.pop() if len(ranks) == 1 else None, skipped=tuple(skipped))


def adapter_rank(config: Any) -> int | None:
    """The rank that an adapter was configured with, or None where its method has none."""
    if isinstance(config, SpectralConfig):
        return config.r if get_method(config.method).ranked else None
    # AdaLoRA's budget ends at target_r; its r counts for nothing.
    r = getattr(config, "target_r", None) or getattr(config, "r", None)
    return r if isinstance(r, int) and r > 0 else None


def _active(layer: BaseTunerLayer) -> list[str]:
    """The active adapters that this layer has."""
    held = {name for kind in layer.adapter_layer_names for name in getattr(layer, kind, {})}
    return [name for name in layer.active_adapters if name in held]


def _is_matrix(layer: BaseTunerLayer) -> bool:
    base = layer.get_base_layer()
    quantised = hasattr(base, "in_features") and hasattr(base, "out_features")
    return not isinstance(base, nn.Embedding) and (is_linear(base) or quantised)


def _originals(modules: list[str], configs: list[Any], base: str | Path | None) -> dict[str, LinearWeight]:
    """Where to read W, if not from the layers."""
    starts = [getattr(config, "init_lora_weights", True) for config in configs]
    rewriting = [start for start in starts if start not in PLAIN_STARTS]
    if not rewriting:
        return {}
    if base is None:
        raise MiloraError(f"base: got none, but {rewriting[0]!r} rewrote the weights in memory; pass the checkpoint")
    found = {weight.name: weight for weight in linear_weights(base, modules).weights}
    lacking = next((module for module in modules if module not in found), None)
    if lacking is not None:
        raise MiloraError(f"base {base}: has no weight of its own for {lacking}")
    return found


def _change(
    module: str, layer: Any, names: list[str], original: Tensor | None
) -> tuple[Tensor, Tensor | Delta]:  # (out, in) twice
    if isinstance(layer, SpectralLinear):
        return at_least_float32(layer.unmerged_weight()), _sum([_spectral(layer, name) for name in names])
    if layer.merged:
        raise MiloraError(f"{module}: is merged, allowed unmerged adapters (unmerge_adapter)")
    if original is None and all(_is_plain_lora(layer, name) for name in names):
        return at_least_float32(_weight(layer)), _sum([_lora(layer, name) for name in names])
    W = _weight(layer) if original is None else original
    dW = _merged(module, layer, names) - W.to(layer.weight.device).double()
    W = at_least_float32(W)
    return W, dW.to(W.dtype)


def _spectral(layer: SpectralLinear, name: str) -> Tensor | Delta:
    if name in layer.spectral_dg:
        dW = layer.get_delta_weight(name)
        return dW.T if layer.fan_in_fan_out else dW
    bracket = layer.bracket(name)
    return Delta(tuple((P.detach(), Q.detach()) for P, Q in bracket.terms()), bracket.scale)


def _is_plain_lora(layer: Any, name: str) -> bool:
    own = type(layer).__module__.startswith("peft.tuners.lora.")  # AdaLoRA's layers are LoraLayers too
    return own and isinstance(layer, LoraLayer) and name in layer.lora_A and not layer.lora_variant.get(name)


def _lora(layer: Any, name: str) -> Delta:
    B, A = (at_least_float32(factor[name].weight) for factor in (layer.lora_B, layer.lora_A))
    return Delta(((B, A),), layer.scaling[name])


def _weight(layer: Any) -> Tensor:  # (out, in)
    base = base_of(layer)
    W = read_weight(base).detach()
    return W.T if keeps_transposed(base) else W


def _merged(module: str, layer: Any, names: list[str]) -> Tensor:  # (out, in), float64
    """What PEFT makes of the base weight, in float64."""
    if quantization_of(base_of(layer)) is not None:
        raise MiloraError(f"{module}: {type(layer).__name__} on a quantised weight, allowed there: plain LoRA")
    own = copy.deepcopy(layer).double()
    try:
        own.merge(safe_merge=False, adapter_names=names)
    except (NotImplementedError, AttributeError, RuntimeError, ValueError) as error:
        raise MiloraError(f"{module}: PEFT cannot merge it ({str(error).splitlines()[0]})") from error
    W = own.get_base_layer().weight.detach()
    return W.T if keeps_transposed(own.get_base_layer()) else W


def _sum(changes: list[Tensor | Delta]) -> Tensor | Delta:
    if len(changes) == 1:
        return changes[0]
    if all(isinstance(change, Delta) for change in changes):
        return Delta(tuple((c.scale * P, Q) for c in changes for P, Q in c.terms), 1.0)  # pyright: ignore
    dense = [c.dense() if isinstance(c, Delta) else c for c in changes]
    return torch.stack(dense).sum(dim=0)

"""How far Adam's first steps move each adapted weight (`milora.methods.first_steps`), of adapters and of requests.

Numbers are ||dW||_F / lr, so that a ratio of two is that of two methods at one learning rate. Adapted are the linear
layers: of an embedding only the rows of tokens that were seen move, and fused experts see few tokens each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from peft import LoraConfig, PeftConfig
from peft.tuners.adalora import AdaLoraLayer
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from milora.adapters.base_layers import features, is_linear
from milora.adapters.build import peft_config
from milora.adapters.config import SpectralConfig
from milora.adapters.delta import INSIDE, lora_scale
from milora.adapters.embedding import SpectralEmbedding
from milora.adapters.layer import SpectralLinear
from milora.adapters.start import base_weight, layer_factors
from milora.decompositions import default_store
from milora.errors import MiloraError
from milora.methods import Factors, get_method
from milora.methods.first_steps import UNPREDICTED, full_step, lora_step, pair_step, spectral_step
from milora.models.spread import gathered
from milora.models.targets import matching_pattern

Shape = tuple[int, int]  # (out, in)


def adapted_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The adapted linear layers of an adapted model, by the base model's own names."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if _is_predicted(module) and is_linear(module):
            found[name.removeprefix(INSIDE)] = module
    return found


def _is_predicted(module: nn.Module) -> bool:
    if isinstance(module, LoraLayer):
        return not isinstance(module, AdaLoraLayer) and len(module.lora_A) > 0
    return isinstance(module, SpectralLinear) and not isinstance(module, SpectralEmbedding)


def adapter_steps(model: nn.Module, adapter: str = "default") -> dict[str, float]:
    """||dW||_F / lr of each adapted linear layer, from the factors that a live adapter has at the start.

    Args:
        model: with one of this package's adapters, or PEFT's LoRA, rsLoRA or DoRA, before it is trained.
        adapter: its name.

    Raises:
        MiloraError: no such adapter, or one whose first steps are not predicted.
    """
    steps: dict[str, float] = {}
    for name, layer in adapted_layers(model).items():
        with gathered(layer.parameters()):
            step = _spectral(layer, adapter) if isinstance(layer, SpectralLinear) else _lora(layer, adapter)
        if step is not None:
            steps[name] = step
    if not steps:
        raise MiloraError(f"first steps: adapter {adapter!r} has no linear layer whose first steps are predicted")
    return steps


def _spectral(layer: SpectralLinear, adapter: str) -> float | None:
    if adapter not in layer.declared:
        return None
    method, choice, core = layer.declared[adapter]
    R0 = None if core is None and "L" not in method.trains else layer.factor("R0", adapter)
    indices = cast(Tensor, layer.spectral_indices[adapter]) if adapter in layer.spectral_indices else None
    start = Factors(layer.factor("L0", adapter), R0, indices=indices)
    shape = layer.out_features, layer.in_features
    return spectral_step(method, choice, start, shape, adapter in layer.spectral_dg)


def _lora(layer: Any, adapter: str) -> float | None:
    if adapter not in layer.lora_A:
        return None
    dora = adapter in layer.lora_magnitude_vector
    B, A = layer.lora_B[adapter].weight, layer.lora_A[adapter].weight
    return pair_step(float(layer.scaling[adapter]), B, A, dora)


def method_steps(
    settings: Mapping[str, Any], shapes: Mapping[str, Shape], factors: Callable[[str, SpectralConfig], Factors]
) -> dict[str, float]:
    """||dW||_F / lr of weights under a method that is asked for and need not be there.

    Args:
        settings: `method`, `lora_r` and other recipe keys, see `peft_config`; an alpha that is not given is the
            method's own, r for those on singular vectors and 2r for LoRA and its kin.
        shapes: (out, in) of each weight, by its module's name.
        factors: of a weight at the start, by its name and the method's configuration; asked of methods on singular
            vectors alone.

    Raises:
        MiloraError: a method whose first steps are not predicted, or what `factors` raises.
    """
    config = _predictable(settings)
    return {name: _step(config, name, shape, factors) for name, shape in shapes.items()}


def _predictable(settings: Mapping[str, Any]) -> PeftConfig | None:
    method = str(settings["method"])
    config = None if method in UNPREDICTED else peft_config(settings)
    if method in UNPREDICTED or (isinstance(config, SpectralConfig) and config.as_published):
        how = method if method in UNPREDICTED else f"{method} as_published"
        raise MiloraError(f"first steps: got {how}, which are not predicted, allowed another method")
    return config


def _step(
    config: PeftConfig | None, name: str, shape: Shape, factors: Callable[[str, SpectralConfig], Factors]
) -> float:
    if config is None:
        return full_step(shape)
    if isinstance(config, SpectralConfig):
        method, choice = get_method(config.method), config.choice(name)
        step = spectral_step(method, choice, factors(name, config), shape, config.magnitude)
        assert step is not None, "as_published is refused before"
        return step
    assert isinstance(config, LoraConfig)
    ranks = config.rank_pattern or {}
    r = ranks.get(matching_pattern(ranks, name) or "", config.r)
    return lora_step(shape, r, lora_scale(config, name), config.use_dora)


def layer_steps(layers: Mapping[str, nn.Module], settings: Mapping[str, Any]) -> dict[str, float]:
    """`method_steps` of linear layers of a model in memory.

    Args:
        layers: base or adapted layers by the base model's names, see `adapted_layers`; their base weights are
            decomposed, or the store is read, where the method asks for it.
        settings: see `method_steps`.
    """
    bases = {n: layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer for n, layer in layers.items()}
    sizes = {n: features(base) for n, base in bases.items()}  # (in, out)
    store = default_store()

    def factors(name: str, config: SpectralConfig) -> Factors:
        adapted = isinstance(layers[name], SpectralLinear)  # its weight may be merged, or dropped
        with base_weight(layers[name] if adapted else bases[name]) as W:
            return layer_factors(W, config, name, store)

    return method_steps(settings, {n: (out, in_) for n, (in_, out) in sizes.items()}, factors)


def ratio_settings(config: Any, method: str) -> dict[str, Any]:
    """The request for another method at an adapter's ranks, all else being that method's own."""
    return {"method": method, "lora_r": config.r, "rank_pattern": getattr(config, "rank_pattern", None) or {}}

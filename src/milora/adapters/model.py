"""`SpectralModel`: PEFT's tuner that puts `SpectralLinear` in the place of the targeted layers."""

from __future__ import annotations

import copy
import gc
import warnings
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from accelerate import init_empty_weights
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, _maybe_include_all_linear_layers
from peft.utils import (
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
    AuxiliaryTrainingWrapper,
    resolve_quantization_backend,
)
from torch import nn

from milora.adapters.base_layers import is_linear
from milora.adapters.checks import check_fingerprint, check_targets, check_values, warn_of_dead_triplets
from milora.adapters.config import SpectralConfig
from milora.adapters.embedding import embeddings_among, layer_class
from milora.adapters.expert_stacks import adapt_stacks, expert_matrices, warn_of_frozen_experts
from milora.adapters.experts import SpectralExperts
from milora.adapters.layer import BASES, SpectralLinear
from milora.adapters.quantised import base_of, original_weights
from milora.adapters.reference import copied_adapter, copy_factors
from milora.adapters.registration import PREFIX
from milora.adapters.spread import check_spread
from milora.adapters.start import all_factors, as_made, base_weight
from milora.adapters.tied import check_not_tied, warn_of_tied_weights
from milora.errors import MiloraError
from milora.methods import Factors
from milora.models.digest import Digest, weight_digest
from milora.models.fingerprint import exact_fingerprint, fingerprint, precision
from milora.models.quantised import prepare_quantised, quantization_of
from milora.models.spread import values_elsewhere


class SpectralModel(BaseTuner):
    """The adapted model; use it through PEFT's `get_peft_model(model, SpectralConfig(...))`."""

    prefix: str = PREFIX
    tuner_layer_cls = BaseTunerLayer
    # Of the one adapter that may train biases: their values in the base, and while it is disabled their tuned ones.
    _base_biases: dict[nn.Parameter, torch.Tensor] | None = None
    _tuned_biases: dict[nn.Parameter, torch.Tensor] | None = None
    target_module_mapping: dict[str, Any] = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    # While an adapter is made: the factors of its layers by name, or None where nothing is to be computed.
    _factors: dict[str, Factors] | None = None

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, torch.Tensor] | None = None,
    ) -> None:
        """Check the whole request and make the factors first: a request that is refused leaves the model as it was."""
        # The caller's configuration may serve another model next; what is learned about this one goes into a copy.
        original = copied_adapter(self.peft_config, adapter_name)
        config = cast(SpectralConfig, copy.copy(self.peft_config[adapter_name]))
        config.saved = config.saved or original is not None
        self.peft_config[adapter_name] = config
        try:
            check_spread(config)
            prepare_quantised(model)
            warn_of_frozen_experts(model, config)
            targets = self._targets(model, config) | expert_matrices(model, config)
            check_targets(targets, config)
            warn_of_tied_weights(model, targets)
            digests = _check_base(targets, config)
            config.embedding_modules = embeddings_among(targets)
            anew = not config.saved and not low_cpu_mem_usage
            bases = config.saved and not config.keeps_bases
            made: dict[str, Factors] = {}
            if anew or bases:
                originals = original_weights(model, targets, config)
                made = all_factors(_on_a_device(targets), config, digests, originals)
            self._factors = made if anew else None
            with _no_collection():
                super().inject_adapter(model, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage, state_dict)
            for name, factors in made.items() if bases else ():
                cast(SpectralLinear, model.get_submodule(name)).fill_bases(adapter_name, factors)
        except MiloraError:
            self.peft_config.pop(adapter_name, None)
            raise
        finally:
            self._factors = None
        if original is not None:
            copy_factors(model, original, adapter_name)
        if config.bias != "none":
            self._base_biases = {p: p.detach().clone() for p in _trained_biases(model, config.bias)}
        warn_of_dead_triplets(model, adapter_name)

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, torch.Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, torch.Tensor]:
        # Bases that are decomposed again when the adapter is loaded.
        whole = super()._get_adapter_state_dict(model, config, adapter_name, state_dict, unwanted_adapter_names)
        return {n: t for n, t in whole.items() if not any(f".{basis}." in n for basis in BASES)}

    def _check_tied_modules(self, model: nn.Module, peft_config: Any) -> None:
        if peft_config.modules_to_save:  # of targets, `warn_of_tied_weights` says more than PEFT does
            super()._check_tied_modules(model, peft_config)

    def _check_merge_allowed(self) -> None:
        check_not_tied(self.model)

    def disable_adapter_layers(self) -> None:
        """Be the base model, biases included."""
        self._enable_adapter_layers(False)

    def _enable_adapter_layers(self, enabled: bool = True) -> None:
        super()._enable_adapter_layers(enabled)
        # Biases train in place, where nothing but a copy can bring the base's back.
        if enabled and self._tuned_biases is not None:
            _set_values(self._tuned_biases)
            self._tuned_biases = None
        elif not enabled and self._tuned_biases is None and self._base_biases is not None:
            self._tuned_biases = {p: p.detach().clone() for p in self._base_biases}
            _set_values(self._base_biases)

    def _targets(self, model: nn.Module, config: SpectralConfig) -> dict[str, nn.Module]:
        """The modules that the configuration names, by name."""
        self._prepare_adapter_config(config, self.get_model_config(model))
        _maybe_include_all_linear_layers(config, model)
        inside = (BaseTunerLayer, AuxiliaryTrainingWrapper)
        modules = dict(model.named_modules())
        adapted = tuple(f"{n}." for n, m in modules.items() if isinstance(m, inside))
        names = [n for n in modules if n and not n.startswith(adapted or ("\0",))]
        targets = {n: modules[n] for n in names if self._check_target_module_exists(config, n)}
        if not targets and (config.target_modules or not config.target_parameters):
            asked = config.target_modules or ()
            wanted = asked if isinstance(asked, str) else sorted(asked)
            leaves = sorted({n.rsplit(".", 1)[-1] for n in names if is_linear(modules[n])})
            raise MiloraError(f"target_modules: {wanted} matches nothing, allowed e.g. {', '.join(leaves)}")
        return targets

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        config = cast(SpectralConfig, peft_config)
        factors = self._taken_factors(target, config, current_key)
        if isinstance(target, SpectralLinear):
            if config.drop_base:
                raise MiloraError(f"drop_base: {current_key} has an adapter already, allowed only for the first one")
            target.update_layer(adapter_name, config, current_key, factors)
            return
        quantization = _quantization(target, self.model)
        layer = layer_class(target, config)(target, adapter_name, config, current_key, quantization, factors)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _inject_parameters(
        self, peft_config: Any, model: nn.Module, adapter_name: str, low_cpu_mem_usage: bool
    ) -> list[str]:
        with init_empty_weights() if low_cpu_mem_usage else nullcontext():
            return adapt_stacks(model, peft_config, adapter_name, self._taken_factors)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # PEFT copies `weight` over, which a whole head in modules_to_save and experts need not have.
        if isinstance(child, AuxiliaryTrainingWrapper | SpectralExperts):
            setattr(parent, child_name, new_module)
        else:
            super()._replace_module(parent, child_name, new_module, child)

    def _taken_factors(self, target: nn.Module, config: SpectralConfig, key: str) -> Factors | None:
        if self._factors is None or not _on_a_device({key: target}):
            return None
        if key not in self._factors:  # a layer that PEFT took from a state dict, by other names than the targets'
            self._factors |= all_factors({key: target}, config, {})
        return self._factors.pop(key)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        # The factors are made in float32; a caller who asks for no autocast wants them in the base layer's dtype.
        if autocast_adapter_dtype:
            return
        for layer in self.modules():
            if isinstance(layer, SpectralLinear) and layer.weight.is_floating_point():
                for name in layer.adapter_layer_names:
                    factors = getattr(layer, name)
                    if adapter_name in factors:
                        factors[adapter_name].data = factors[adapter_name].data.to(layer.weight.dtype)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Generator[None]:
        # PEFT would drop `adapter_names` without a word and answer with the active adapter.
        if kwargs.get("adapter_names") is not None:
            raise MiloraError("adapter_names: got one name per sample, allowed only for LoRA; use set_adapter")
        yield


@contextmanager
def _no_collection() -> Generator[None]:
    # Thousands of modules are made and none of them is garbage. A collection in between walks all objects of torch and
    # transformers, and takes longer than making an adapter from the store.
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _set_values(values: dict[nn.Parameter, torch.Tensor]) -> None:
    for parameter, value in values.items():
        parameter.data = value.to(parameter.device, parameter.dtype, copy=True)


def _trained_biases(model: nn.Module, bias: str) -> list[nn.Parameter]:
    if bias == "all":
        return [p for n, p in model.named_parameters() if n == "bias" or n.endswith(".bias")]
    layers = [m.bias for m in model.modules() if isinstance(m, SpectralLinear)]
    return [b for b in layers if isinstance(b, nn.Parameter)]


def _quantization(target: nn.Module, model: nn.Module) -> Any:
    quantizer = getattr(model, "hf_quantizer", None)
    apply = getattr(getattr(quantizer, "quantization_config", None), "get_apply_tensor_subclass", None)
    return resolve_quantization_backend(target, get_apply_tensor_subclass=apply)


def _check_base(targets: dict[str, nn.Module], config: SpectralConfig) -> dict[str, Digest]:
    """Name the targeted weights by their content; a saved adapter must meet the base it was made on.

    Returns:
        The digests of the weights by name; none where there are only shapes.
    """
    if len(_on_a_device(targets)) < len(targets):
        return {}
    digests: dict[str, Digest] = {}
    dtypes: set[torch.dtype] = set()
    for name, target in sorted(targets.items()):
        with base_weight(target) as W:
            digests[name] = weight_digest(W)
            dtypes.add(W.dtype)
    bases = [base_of(t) for t in targets.values()]
    quantised = {quantization_of(b) for b in bases if not isinstance(b, nn.Embedding)} - {None}
    here = precision(dtypes, "+".join(sorted(map(str, quantised))))
    if config.saved and not config.any_base and config.base_precision == here:
        check_fingerprint(config, digests)
    if config.saved and config.base_precision != here:
        warnings.warn(
            f"the adapter was made on a {config.base_precision} base, this one is {here}: not compared", stacklevel=2
        )
    if not config.saved:
        config.base_fingerprint, config.base_precision = fingerprint(digests.items()), here
        if not config.keeps_bases and quantised == set() and len(dtypes) == 1:
            config.base_dtype = str(dtypes.pop()).removeprefix("torch.")
            config.base_values = exact_fingerprint(digests)
    elif not config.keeps_bases and not config.any_base and config.base_values is not None:
        check_values(config, _as_made(targets, config, digests))
    return digests


def _as_made(targets: dict[str, nn.Module], config: SpectralConfig, digests: dict[str, Digest]) -> dict[str, Digest]:
    """The digests of the weights in the dtype in which unsaved bases were made of them."""
    made = {}
    for name, target in targets.items():
        with base_weight(target) as W:
            made_of = as_made(W, config)
            made[name] = digests[name] if made_of is W else weight_digest(made_of)
    return made


def _on_a_device(targets: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """The targets whose weights have values."""
    if values_elsewhere():
        return {}
    bases = {n: t.get_base_layer() if isinstance(t, SpectralLinear) else t for n, t in targets.items()}
    return {n: targets[n] for n, b in bases.items() if not cast(torch.Tensor, b.weight).is_meta}

"""`SpectralExperts`: the equation on weights that a model keeps fused, (experts, out, in) in one parameter.

    W'_e = W_e + s (L_e R_e - L0_e R0_e)        for each expert e, by its own decomposition

How such a module uses its weights is its own affair, so that the bracket cannot stand beside them: the module is called
with W' in the place of W, for the time of the call. W itself is never written. The sum is in W's dtype, as it would be
in a merged model: in bfloat16 a change below W's resolution is not seen, though it is kept and trained in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from torch.func import functional_call

from milora.adapters.config import SpectralConfig
from milora.adapters.frozen import FrozenFactors
from milora.errors import MiloraError
from milora.methods import Bracket, Factors, get_method

_TRAINED, _FROZEN = ("dL", "dR"), ("L0", "R0")


class SpectralExperts(nn.Module, BaseTunerLayer):
    """A base module of experts and, by parameter and adapter name, the stacked factors of its adapters.

    Args:
        base_layer: the module; its `is_transposed` says that it keeps (experts, in, out).
    """

    other_param_names = ("r", "scales", "scaling", "dead")

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.adapter_layer_names: tuple[str, ...] = ()
        self.parameters_adapted: tuple[str, ...] = ()
        self.scales: dict[str, dict[str, float]] = {}  # s by adapter, by parameter
        self.scaling: dict[str, float] = {}  # what all of an adapter's scales are multiplied with
        self.r: dict[str, int] = {}
        self.dead: dict[str, int] = {}
        self.merged_adapters = []
        self.frozen_peft_weight_names = {}
        self._awaiting: dict[str, set[str]] = {}  # by parameter, the adapters that are still to be loaded
        self._unmerged: dict[str, Tensor] = {}

    def update_parameter(
        self,
        parameter: str,
        adapter_name: str,
        config: SpectralConfig,
        key: str,
        factors: Sequence[Factors | None],
    ) -> None:
        """Add an adapter to one of the module's parameters.

        Args:
            parameter: its name in the base module.
            adapter_name: the adapter's.
            config: its configuration.
            key: the parameter's name in the model; it chooses patterns.
            factors: of each expert's weight at the start, None as in `SpectralLinear.update_layer`.
        """
        if parameter not in self.parameters_adapted:
            self.parameters_adapted += (parameter,)
            awaited = self._awaiting.setdefault(parameter, set())
            for name in (*_TRAINED, *_FROZEN):
                holder = FrozenFactors(awaited) if name in _FROZEN else nn.ParameterDict()
                setattr(self, f"spectral_{name}_{parameter}", holder)
                self.adapter_layer_names += (f"spectral_{name}_{parameter}",)
        experts, out, in_ = self._stored(parameter).shape
        r, given = config.rank(key), [f for f in factors if f is not None]
        self.r[adapter_name] = r
        self.scales.setdefault(adapter_name, {})[parameter] = config.scale(key)
        self.scaling[adapter_name] = 1.0
        self.dead[adapter_name] = self.dead.get(adapter_name, 0) + sum(f.dead for f in given)
        weight = self._stored(parameter)
        like: Any = {"dtype": torch.promote_types(weight.dtype, torch.float32), "device": weight.device}
        new = {"L0": torch.zeros(experts, out, r, **like), "dR": torch.zeros(experts, r, in_, **like)}
        if "L" in get_method(config.method).trains:
            new |= {"dL": torch.zeros(experts, out, r, **like), "R0": torch.zeros(experts, r, in_, **like)}
        for e, start in enumerate(given):
            new["L0"][e] = start.L0
            if start.R0 is not None:
                new["R0"][e] = start.R0
        for name, value in new.items():
            self._of(name, parameter)[adapter_name] = nn.Parameter(value)
        if not given and not weight.is_meta and not self._of("L0", parameter)[adapter_name].is_meta:
            self._awaiting[parameter].add(adapter_name)
        frozen = tuple(n for n in self.adapter_layer_names if n.startswith(tuple(f"spectral_{f}_" for f in _FROZEN)))
        self.frozen_peft_weight_names[adapter_name] = frozen
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _of(self, factor: str, parameter: str) -> nn.ParameterDict:
        return getattr(self, f"spectral_{factor}_{parameter}")

    def _transposed(self, W: Tensor) -> Tensor:
        """(experts, out, in) from what the base keeps, and back."""
        return W.mT if getattr(self.base_layer, "is_transposed", False) else W

    def _stored(self, parameter: str) -> Tensor:  # (experts, out, in)
        return self._transposed(getattr(self.base_layer, parameter))

    def unmerged(self, parameter: str) -> Tensor:
        """The weight as the base keeps it, without adapters."""
        weight: Tensor = getattr(self.base_layer, parameter)
        return self._unmerged.get(parameter, weight.data)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the base module gives with the adapted weights."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        if self.disable_adapters or self.merged:
            return self.base_layer(*args, **kwargs)
        names = [n for n in self.active_adapters if n in self.scaling]
        changed = {p: self._adapted(p, names) for p in self.parameters_adapted}
        return functional_call(self.base_layer, changed, args, kwargs, tie_weights=False)

    def _adapted(self, parameter: str, names: Sequence[str]) -> Tensor:
        """W' as the base keeps it, in W's dtype."""
        W = self._stored(parameter)
        with torch.autocast(W.device.type, enabled=False):
            for name in names:
                if name in self._of("L0", parameter):
                    L, R = self._joined(parameter, name)
                    W = torch.baddbmm(W, L.to(W.dtype), R.to(W.dtype))
        return self._transposed(W)

    def _joined(self, parameter: str, name: str) -> tuple[Tensor, Tensor]:
        """s [L0 + dL, dL] (experts, out, 2r) and [dR; R0] (experts, 2r, in), whose product is the bracket."""
        if name in self._awaiting[parameter] and not bool(self._of("L0", parameter)[name].any()):
            raise MiloraError(
                f"adapter {name!r}: its configuration was read from a saved adapter but its weights were not loaded;"
                " use PeftModel.from_pretrained, or set base_fingerprint to None to make it anew"
            )
        self._awaiting[parameter].discard(name)
        factors = {f: self._of(f, parameter)[name] for f in (*_TRAINED, *_FROZEN) if name in self._of(f, parameter)}
        B, A = stacked_pair(factors)
        return self.scaling[name] * self.scales[name][parameter] * B, A

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the brackets to the base weights: in float32, from the unmerged weights, cast once."""
        new = [n for n in check_adapters_to_merge(self, adapter_names) if n in self.scaling]
        for parameter in self.parameters_adapted if new else ():
            base = self.unmerged(parameter).to(getattr(self.base_layer, parameter).device)
            merged = self._transposed(base).to(torch.promote_types(base.dtype, torch.float32))
            for name in [*self.merged_adapters, *new]:
                if name in self._of("L0", parameter):
                    merged = torch.baddbmm(merged, *(f.to(merged.dtype) for f in self._joined(parameter, name)))
            merged = self._transposed(merged).to(base.dtype).contiguous()
            if safe_merge and not bool(torch.isfinite(merged).all()):
                raise MiloraError(f"merge: adapters {', '.join(new)} give NaN or Inf, allowed finite weights")
            self._unmerged[parameter] = base
            getattr(self.base_layer, parameter).data = merged
        self.merged_adapters.extend(new)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Put the unmerged weights back, bit for bit."""
        for parameter, base in self._unmerged.items():
            weight = getattr(self.base_layer, parameter)
            weight.data = base.to(weight.device, weight.dtype)
        self._unmerged.clear()
        self.merged_adapters.clear()

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        for name in self.adapter_layer_names:
            factors = getattr(self, name)
            if adapter_name in factors and not factors[adapter_name].is_meta:
                target = device or getattr(self.base_layer, self.parameters_adapted[0]).device
                factors[adapter_name].data = factors[adapter_name].data.to(target)

    def __repr__(self) -> str:
        return "spectral." + super().__repr__()


def stacked_pair(factors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """P (experts, out, q) and Q (experts, q, in) of every expert's bracket; q = 2r, or r where only R trains."""
    return Bracket(1.0, factors["L0"], factors.get("R0"), factors.get("dL"), factors["dR"]).pair()

"""`SpectralLinear`: a linear layer with the bracket s (L R - L0 R0) beside its untouched base weight.

    y = W x + b + s ([L0 + dL, dL] [dR; R0]) dropout(x)

dL, dR train and are zero at the start; L0, R0 are frozen parameters, so that PEFT saves, shards and moves them with
the rest. For a method in which only R trains, dL and R0 do not exist: y = W x + b + s L0 dR dropout(x).
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from peft.utils import resolve_quantization_backend
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from milora.adapters.config import SpectralConfig
from milora.errors import MiloraError
from milora.methods import Factors, get_method


class SpectralLinear(nn.Module, BaseTunerLayer):
    """A base linear layer and, by adapter name, the factors of its adapters.

    Args:
        base_layer: nn.Linear, transformers' Conv1D, or a quantised linear layer that PEFT knows.
        adapter_name: name of the first adapter.
        config: its configuration.
        key: the module's name in the model; it chooses patterns and seeds.
        quantization_backend: PEFT's access to a quantised weight, or None.
        factors: see `update_layer`.
    """

    adapter_layer_names = ("spectral_dL", "spectral_dR", "spectral_L0", "spectral_R0")
    other_param_names = ("r", "scaling", "dead", "spectral_dropout")

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        config: SpectralConfig,
        key: str,
        quantization_backend: Any = None,
        factors: Factors | None = None,
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.fan_in_fan_out = isinstance(base_layer, Conv1D)  # its weight is (in, out)
        self.quantization_backend = quantization_backend or resolve_quantization_backend(base_layer)
        self.in_features, self.out_features = features(base_layer)
        self.spectral_dL = nn.ParameterDict()  # each (out, r), trained
        self.spectral_dR = nn.ParameterDict()  # each (r, in), trained
        self.spectral_L0 = nn.ParameterDict()  # each (out, r), frozen
        self.spectral_R0 = nn.ParameterDict()  # each (r, in), frozen
        self.spectral_dropout = nn.ModuleDict()
        self.r: dict[str, int] = {}
        self.scaling: dict[str, float] = {}
        self.dead: dict[str, int] = {}
        self.merged_adapters = []
        self.frozen_peft_weight_names = {}
        self._awaiting: set[str] = set()
        self._unmerged_weight: Tensor | None = None
        self.update_layer(adapter_name, config, key, factors)

    def update_layer(self, adapter_name: str, config: SpectralConfig, key: str, factors: Factors | None = None) -> None:
        """Add an adapter.

        Args:
            adapter_name: its name.
            config: its configuration.
            key: the module's name in the model.
            factors: of this layer's weight at the start; None where a saved adapter will fill them, or where only
                shapes are asked for.
        """
        method = get_method(config.method)
        r, scale = config.rank(key), config.scale(key)
        self.r[adapter_name], self.scaling[adapter_name], self.dead[adapter_name] = (
            r,
            scale,
            0 if factors is None else factors.dead,
        )
        self.spectral_dropout[adapter_name] = nn.Dropout(config.lora_dropout) if config.lora_dropout else nn.Identity()
        weight = self.base_layer.weight
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        like: dict[str, Any] = {"dtype": dtype, "device": weight.device}
        L0 = torch.zeros(self.out_features, r, **like) if factors is None else _owned(factors.L0, **like)
        self.spectral_L0[adapter_name] = nn.Parameter(L0)
        self.spectral_dR[adapter_name] = nn.Parameter(torch.zeros(r, self.in_features, **like))
        if "L" in method.trains:
            given = None if factors is None else factors.R0
            R0 = torch.zeros(r, self.in_features, **like) if given is None else _owned(given, **like)
            self.spectral_R0[adapter_name] = nn.Parameter(R0)
            self.spectral_dL[adapter_name] = nn.Parameter(torch.zeros(self.out_features, r, **like))
        self.frozen_peft_weight_names[adapter_name] = ("spectral_L0", "spectral_R0")
        if factors is None and not self.spectral_L0[adapter_name].is_meta:
            self._awaiting.add(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def unmerged_weight(self) -> Tensor:  # (out, in)
        """The base weight as it is without adapters, dequantised where it is quantised."""
        weight = self._unmerged_weight if self._unmerged_weight is not None else self.get_base_weight()
        return weight.T if self.fan_in_fan_out else weight

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # (..., in) -> (..., out)
        """The base layer's output plus the bracket of every active adapter."""
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
            return self.base_layer(x, *args, **kwargs)
        y = self.base_layer(x, *args, **kwargs)
        if self.merged:
            return y
        dtype = y.dtype
        if self.quantization_backend is not None:
            y = self.quantization_backend.maybe_clone_base_result(y)
        for name in self.active_adapters:
            if name in self.spectral_L0:
                y = y + self._bracket(x, name)
        return y.to(dtype)

    def _bracket(self, x: Tensor, name: str) -> Tensor:  # (..., in) -> (..., out)
        if name in self._awaiting:
            self._confirm_loaded(name)
        L0, dR = self.spectral_L0[name], self.spectral_dR[name]
        x = self.spectral_dropout[name](self._cast_input_dtype(x, dR.dtype))
        if name not in self.spectral_dL:
            return F.linear(F.linear(x, dR) * self.scaling[name], L0)
        dL, R0 = self.spectral_dL[name], self.spectral_R0[name]
        z = F.linear(x, torch.cat([dR, R0])) * self.scaling[name]  # (..., 2r)
        return F.linear(z, torch.cat([L0 + dL, dL], dim=1))

    def _confirm_loaded(self, name: str) -> None:
        # L0 spans directions of the output, so that a loaded L0 is never all zero.
        if name in self._awaiting and not bool(self.spectral_L0[name].any()):
            raise MiloraError(
                f"adapter {name!r}: its configuration was read from a saved adapter but its weights were not loaded;"
                " use PeftModel.from_pretrained, or set base_fingerprint to None to make it anew"
            )
        self._awaiting.discard(name)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # Known here, a loaded adapter needs no look at its values in the first forward pass (nor torch.compile).
        self._awaiting -= {n for n in self._awaiting if f"{prefix}spectral_L0.{n}" in state_dict}
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @torch.no_grad()
    def get_delta_weight(self, adapter: str) -> Tensor:  # (out, in), or (in, out) as the base layer stores it
        """s (L R - L0 R0) = s (L dR + dL R0), in the factors' dtype."""
        self._confirm_loaded(adapter)
        delta = self.spectral_L0[adapter] @ self.spectral_dR[adapter]
        if adapter in self.spectral_dL:
            delta += self.spectral_dL[adapter] @ (self.spectral_dR[adapter] + self.spectral_R0[adapter])
        delta *= self.scaling[adapter]
        return delta.T if self.fan_in_fan_out else delta

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the brackets to the base weight: in float32, from the unmerged weight, cast once.

        The unmerged weight is kept until `unmerge`, which puts it back as it was.

        Raises:
            MiloraError: with `safe_merge`, where the merged weight would hold NaN or Inf.
        """
        new = [n for n in check_adapters_to_merge(self, adapter_names) if n in self.spectral_L0]
        if not new:
            return
        base = self._stashed() if self._unmerged_weight is not None else self.get_base_weight()
        merged = base.to(torch.promote_types(base.dtype, torch.float32))
        for name in [*self.merged_adapters, *new]:
            merged = merged + self.get_delta_weight(name).to(merged.device)
        merged = merged.to(base.dtype)
        if safe_merge and not bool(torch.isfinite(merged).all()):
            raise MiloraError(f"merge: adapters {', '.join(new)} give NaN or Inf, allowed finite weights")
        self._unmerged_weight = base
        self.set_base_weight(merged)
        self.merged_adapters.extend(new)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Put the unmerged weight back, bit for bit."""
        if self._unmerged_weight is None:
            return
        self.set_base_weight(self._stashed())
        self._unmerged_weight = None
        self.merged_adapters.clear()

    def _stashed(self) -> Tensor:
        # The model may have been moved or cast since; `Module.to` does not see a plain attribute.
        assert self._unmerged_weight is not None
        dtype = self.weight.dtype if self.quantization_backend is None else self._unmerged_weight.dtype
        return self._unmerged_weight.to(self.weight.device, dtype)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """True: the bracket is a sum on the weight."""
        return True

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # The factors keep their dtype: in a bfloat16 base layer's dtype they would lose most of their digits.
        target = device or self.weight.device
        for layer_name in self.adapter_layer_names:
            factors = getattr(self, layer_name)
            if adapter_name in factors and not factors[adapter_name].is_meta:
                factor = factors[adapter_name]
                factors[adapter_name] = nn.Parameter(factor.detach().to(target), requires_grad=factor.requires_grad)

    def __repr__(self) -> str:
        return "spectral." + super().__repr__()


def features(base_layer: nn.Module) -> tuple[int, int]:
    """(in, out) of a linear layer."""
    if isinstance(base_layer, Conv1D):
        in_, out = base_layer.weight.shape
        return int(in_), int(out)
    return int(base_layer.in_features), int(base_layer.out_features)  # pyright: ignore[reportArgumentType]


def _owned(factor: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A factor as a parameter takes it: in rows, in memory that is its own and no view of something larger."""
    own = factor.detach().to(device, dtype).contiguous()
    return own if own.untyped_storage().nbytes() == own.nbytes else own.clone()

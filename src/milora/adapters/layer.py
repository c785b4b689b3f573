"""`SpectralLinear`: a linear layer with the bracket s (L C R - L0 C0 R0) beside its untouched base weight.

    y = W x + b + s P Q dropout(x)                                        (`milora.methods.bracket`)
    y = W x + b + (c - 1) W x + c s P Q dropout(x),   c = g / ||W + s P Q||_row       with a magnitude

What trains (dL, dR, C, dg) is zero at the start; L0, R0, g0 are frozen parameters, so that PEFT saves, shards and moves
them with the rest. Where a saved adapter does not hold L0 and R0 (`SpectralConfig.save_bases`) they are called basis_L0
and basis_R0, by which PEFT knows that they are not the adapter's to save.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.utils import resolve_quantization_backend
from torch import Tensor, nn

from milora.adapters.base_layers import features, keeps_transposed
from milora.adapters.config import SpectralConfig
from milora.adapters.frozen import FrozenFactors, WatchedFactors
from milora.adapters.mergeable import Mergeable
from milora.errors import MiloraError
from milora.methods import Bracket, Factors, get_method, magnitude_quotient, row_norms
from milora.methods.core import Scattered
from milora.models.spread import gathered

TRAINED = ("spectral_dL", "spectral_dR", "spectral_C", "spectral_dg")
FROZEN = ("spectral_L0", "spectral_R0", "spectral_g0")
BASES = ("basis_L0", "basis_R0")  # of an adapter that is saved without them


class SpectralLinear(nn.Module, Mergeable):
    """A base linear layer and, by adapter name, the factors of its adapters.

    Args:
        base_layer: nn.Linear, transformers' Conv1D, or a quantised linear layer that PEFT knows.
        adapter_name: name of the first adapter.
        config: its configuration.
        key: the module's name in the model; it chooses patterns and seeds.
        quantization_backend: PEFT's access to a quantised weight, or None.
        factors: see `update_layer`.
    """

    adapter_layer_names = (*TRAINED, *FROZEN, *BASES)
    other_param_names = ("r", "scaling", "dead", "spectral_dropout", "spectral_indices", "declared")

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
        self.fan_in_fan_out = keeps_transposed(base_layer)  # its weight is (in, out)
        self.quantization_backend = quantization_backend or resolve_quantization_backend(base_layer)
        self.in_features, self.out_features = features(base_layer)
        self._awaiting: set[str] = set()
        self.spectral_dL = nn.ParameterDict()  # each (out, q), trained
        self.spectral_dR = nn.ParameterDict()  # each (q, in), trained
        self.spectral_C = WatchedFactors(self._awaiting)  # each (numbers of the core,), trained
        self.spectral_dg = nn.ParameterDict()  # each (out,), trained
        self.spectral_L0 = FrozenFactors(self._awaiting)  # each (out, q), frozen
        self.spectral_R0 = FrozenFactors(self._awaiting)  # each (q, in), frozen
        self.spectral_g0 = FrozenFactors(self._awaiting)  # each (out,), frozen
        self.basis_L0 = FrozenFactors(self._awaiting)
        self.basis_R0 = FrozenFactors(self._awaiting)
        self.spectral_indices = BufferDict(persistent=True)  # each (2, size), where a scattered core has its numbers
        self.spectral_dropout = nn.ModuleDict()
        self.r: dict[str, int] = {}
        self.scaling: dict[str, float] = {}
        self.dead: dict[str, int] = {}
        self.declared = {}
        self.merged_adapters = []
        self.frozen_peft_weight_names = {}
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
        method, choice = get_method(config.method), config.choice(key)
        q = method.width(min(self.out_features, self.in_features), choice)
        core = method.core(q, choice)
        self.declared[adapter_name] = (method, choice, core)
        self.r[adapter_name], self.scaling[adapter_name] = q, choice.scale
        self.dead[adapter_name] = factors.dead if factors else 0
        self.spectral_dropout[adapter_name] = nn.Dropout(config.lora_dropout) if config.lora_dropout else nn.Identity()
        weight = self.base_layer.weight
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        like: dict[str, Any] = {"dtype": dtype, "device": weight.device}
        self._add_bases(adapter_name, config, q, factors, like)
        if "R" in method.trains:
            self.spectral_dR[adapter_name] = nn.Parameter(torch.zeros(q, self.in_features, **like))
        if "L" in method.trains:
            self.spectral_dL[adapter_name] = nn.Parameter(torch.zeros(self.out_features, q, **like))
        if core is not None:
            given = factors and factors.C
            C = torch.zeros(method.core_numbers(q, choice), **like) if given is None else _owned(given, **like)
            self.spectral_C[adapter_name] = nn.Parameter(C)
        if isinstance(core, Scattered):
            given = factors and factors.indices
            given = torch.zeros(2, core.size, dtype=torch.int32) if given is None else given
            self.spectral_indices[adapter_name] = given.to(like["device"])
        if config.magnitude:
            self.spectral_dg[adapter_name] = nn.Parameter(torch.zeros(self.out_features, **like))
            g0 = torch.zeros(self.out_features, **like)
            if factors is not None:
                with gathered(self.get_base_layer().parameters()):
                    g0 = row_norms(self.unmerged_weight()).to(dtype)
            self.spectral_g0[adapter_name] = nn.Parameter(g0)
        self.frozen_peft_weight_names[adapter_name] = (*FROZEN, *BASES)
        if factors is None and not self.factor("L0", adapter_name).is_meta:
            self._awaiting.add(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _add_bases(
        self, name: str, config: SpectralConfig, q: int, factors: Factors | None, like: dict[str, Any]
    ) -> None:
        """L0 and R0: from the factors, or zero until they are loaded. What is there already is not kept twice."""
        prefix = "spectral" if config.keeps_bases else "basis"
        shapes = {"L0": (self.out_features, q), "R0": (q, self.in_features)}
        if not get_method(config.method).trains & {"L", "C"}:
            del shapes["R0"]
        for factor, shape in shapes.items():
            given = None if factors is None else getattr(factors, factor)
            value = torch.zeros(*shape, **like) if given is None else _owned(given, **like)
            held = [p for known in (f"spectral_{factor}", f"basis_{factor}") for p in getattr(self, known).values()]
            same = [p for p in held if given is not None and p.shape == value.shape and torch.equal(p, value)]
            getattr(self, f"{prefix}_{factor}")[name] = same[0] if same else nn.Parameter(value)

    def fill_bases(self, adapter_name: str, factors: Factors) -> None:
        """Put L0 and R0 where a saved adapter without them left shapes."""
        dtype = torch.float64 if self.weight.dtype == torch.float64 else torch.float32
        for held, factor in ((self.basis_L0, factors.L0), (self.basis_R0, factors.R0)):
            if factor is None:
                continue
            value = nn.Parameter(_owned(factor, dtype=dtype, device=self.weight.device), requires_grad=False)
            held._parameters[adapter_name] = value  # PEFT makes a shape of what is assigned in the usual way

    def factor(self, factor: str, name: str) -> Tensor:
        """L0 or R0 of an adapter."""
        own = getattr(self, f"spectral_{factor}")
        return own[name] if name in own else getattr(self, f"basis_{factor}")[name]

    def bracket(self, name: str) -> Bracket:
        """s (L C R - L0 C0 R0) of an adapter."""
        method, choice, core = self.declared[name]
        L0, scale = self.factor("L0", name), self.scaling[name]
        if core is None and "L" not in method.trains:
            return Bracket(scale, L0, dR=self.spectral_dR[name].to(L0.dtype))
        R0 = self.factor("R0", name)
        if core is None:
            return Bracket(scale, L0, R0, self.spectral_dL[name].to(L0.dtype), self.spectral_dR[name].to(L0.dtype))
        indices = self.spectral_indices[name] if isinstance(core, Scattered) else None
        return Bracket(
            scale, L0, R0, core=core, c=method.values(self.spectral_C[name].to(L0.dtype), R0, choice), indices=indices
        )

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # (..., in) -> (..., out)
        """The base layer's output plus the bracket of every active adapter."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        y = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return y
        base, dtype = y, y.dtype
        if self.quantization_backend is not None:
            base = y = self.quantization_backend.maybe_clone_base_result(y)
        for name in self.active_adapters:
            if name in self.declared:
                y = y + self._change(x, base, name)
        return y.to(dtype)

    def _change(self, x: Tensor, base: Tensor, name: str) -> Tensor:  # (..., in), (..., out) -> (..., out)
        if name in self._awaiting:
            self._confirm_loaded(name)
        bracket = self.bracket(name)
        change = self._applied(bracket, x, name)
        if name not in self.spectral_dg:
            return change
        c, bias = self._quotient(name, bracket), getattr(self.get_base_layer(), "bias", None)
        Wx = base if bias is None else base - bias
        return (c - 1) * Wx + c * change

    def _applied(self, bracket: Bracket, x: Tensor, name: str) -> Tensor:
        return bracket(self.spectral_dropout[name](self._cast_input_dtype(x, bracket.L0.dtype)))

    def _quotient(self, name: str, bracket: Bracket) -> Tensor:  # (out,)
        with gathered(self.get_base_layer().parameters()):
            return magnitude_quotient(self.unmerged_weight(), self.spectral_g0[name], self.spectral_dg[name], bracket)

    def _told_by(self, name: str) -> str:
        """What tells that an adapter was loaded: L0, which is never all zero; where it is not saved, what trains."""
        return next(n for n in ("spectral_L0", "spectral_C", "spectral_dR") if name in getattr(self, n))

    def _confirm_loaded(self, name: str) -> None:
        if name in self._awaiting and not bool(getattr(self, self._told_by(name))[name].any()):
            raise MiloraError(
                f"adapter {name!r}: its configuration was read from a saved adapter but its weights were not loaded;"
                " use PeftModel.from_pretrained, or set base_fingerprint to None to make it anew"
            )
        self._awaiting.discard(name)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # Known here, a loaded adapter needs no look at its values in the first forward pass (nor torch.compile).
        self._awaiting -= {n for n in self._awaiting if f"{prefix}{self._told_by(n)}.{n}" in state_dict}
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @torch.no_grad()
    def get_delta_weight(self, adapter: str) -> Tensor:  # (out, in), or (in, out) as the base layer stores it
        """W' - W of one adapter, in the factors' dtype."""
        self._confirm_loaded(adapter)
        bracket = self.bracket(adapter)
        delta = bracket.dense()
        if adapter in self.spectral_dg:
            c = self._quotient(adapter, bracket)[:, None]
            delta = (c - 1) * self.unmerged_weight().to(delta.dtype) + c * delta
        return delta.T if self.fan_in_fan_out else delta

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
        if adapter_name in self.spectral_indices:
            self.spectral_indices[adapter_name] = cast(Tensor, self.spectral_indices[adapter_name]).to(target)

    def __repr__(self) -> str:
        return "spectral." + super().__repr__()


def _owned(factor: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A factor as a parameter takes it: in rows, in memory that is its own and no view of something larger."""
    own = factor.detach().to(device, dtype).contiguous()
    return own if own.untyped_storage().nbytes() == own.nbytes else own.clone()

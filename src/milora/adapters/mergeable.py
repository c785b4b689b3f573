"""A layer whose adapters can be added into its base weight, and taken out again to the last bit."""

from __future__ import annotations

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor

from milora.adapters.quantised import QuantisedWeight
from milora.errors import MiloraError
from milora.methods import Choice, Method
from milora.methods.core import Core


class Mergeable(BaseTunerLayer):
    """The base weight of a tuner layer with and without its adapters."""

    fan_in_fan_out: bool
    declared: dict[str, tuple[Method, Choice, Core | None]]  # by the names of this layer's adapters
    _unmerged_weight: Tensor | QuantisedWeight | None = None

    def get_delta_weight(self, adapter: str) -> Tensor:
        """W' - W of one adapter, as the base layer stores it."""
        raise NotImplementedError

    def unmerged_weight(self) -> Tensor:  # (out, in)
        """The base weight as it is without adapters, dequantised where it is quantised."""
        weight = self._stashed() if self._unmerged_weight is not None else self.get_base_weight()
        return weight.T if self.fan_in_fan_out else weight

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the brackets to the base weight: in float32, from the unmerged weight, cast once.

        The unmerged weight is kept until `unmerge`, which puts it back as it was.

        Raises:
            MiloraError: with `safe_merge`, where the merged weight would hold NaN or Inf.
        """
        new = [n for n in check_adapters_to_merge(self, adapter_names) if n in self.declared]
        if not new:
            return
        base = self._stashed() if self._unmerged_weight is not None else self.get_base_weight()
        merged = base.to(torch.promote_types(base.dtype, torch.float32))
        for name in [*self.merged_adapters, *new]:
            merged = merged + self.get_delta_weight(name).to(merged.device)
        merged = merged.to(base.dtype)
        if safe_merge and not bool(torch.isfinite(merged).all()):
            raise MiloraError(f"merge: adapters {', '.join(new)} give NaN or Inf, allowed finite weights")
        if self.quantization_backend is None:
            self._unmerged_weight = base
        elif self._unmerged_weight is None:
            self._unmerged_weight = QuantisedWeight(self)
        self.set_base_weight(merged)
        self.merged_adapters.extend(new)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Put the unmerged weight back, bit for bit."""
        if self._unmerged_weight is None:
            return
        if isinstance(self._unmerged_weight, QuantisedWeight):
            self._unmerged_weight.put_back(self)
        else:
            self.set_base_weight(self._stashed())
        self._unmerged_weight = None
        self.merged_adapters.clear()

    def _stashed(self) -> Tensor:
        # The model may have been moved or cast since; `Module.to` does not see a plain attribute.
        assert self._unmerged_weight is not None
        if isinstance(self._unmerged_weight, QuantisedWeight):
            return self._unmerged_weight.dequantised(self)
        return self._unmerged_weight.to(self.weight.device, self.weight.dtype)

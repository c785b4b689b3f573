"""SVF without the base weight: U and S V^T stand in for W, so that a layer keeps two matrices and not three.

    y = U ((1 + (z - 1)) * (S V^T x)) + b

The start is the base model only to rounding, for U S V^T is W only to rounding; everything else is as with W.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from milora.adapters.config import SpectralConfig
from milora.adapters.layer import SpectralLinear
from milora.errors import MiloraError
from milora.methods import Factors


class SpectralLinearWithoutBase(SpectralLinear):
    """A layer whose first adapter, an SVF of all triplets, stands in for its base weight.

    Raises:
        MiloraError: the base layer is quantised.
    """

    _standing_in: str | None = None

    def update_layer(self, adapter_name: str, config: SpectralConfig, key: str, factors: Factors | None = None) -> None:
        """See `SpectralLinear.update_layer`; the base weight is dropped as soon as there are factors."""
        if self.quantization_backend is not None:
            raise MiloraError(f"drop_base: got a quantised weight in {key}, allowed one that is not")
        super().update_layer(adapter_name, config, key, factors)
        if factors is not None and config.drop_base:
            self._drop(adapter_name)

    def fill_bases(self, adapter_name: str, factors: Factors) -> None:
        """See `SpectralLinear.fill_bases`."""
        super().fill_bases(adapter_name, factors)
        self._drop(adapter_name)

    def _drop(self, name: str) -> None:
        if self._standing_in is None:
            self._standing_in = name
            self.base_layer.weight.data = self.base_layer.weight.data.new_empty(0)  # pyright: ignore

    def get_base_weight(self) -> Tensor:
        """The base weight as the base layer would store it: U S V^T."""
        name = self._standing_in
        if name is None or self.merged:
            return super().get_base_weight()
        W = (self.factor("L0", name) @ self.factor("R0", name)).detach().to(self.weight.dtype)
        return W.T if self.fan_in_fan_out else W

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # (..., in) -> (..., out)
        """U (z * (S V^T x)) + b, and the brackets of other active adapters."""
        name = self._standing_in
        if name is None or (self.merged and not self.disable_adapters):
            return super().forward(x, *args, **kwargs)
        if self.merged:
            self.unmerge()
        L0, R0 = self.factor("L0", name), self.factor("R0", name)
        active = [] if self.disable_adapters else [n for n in self.active_adapters if n in self.declared]
        z = F.linear(x.to(R0.dtype), R0)  # (..., k)
        # Dropout acts on the change alone, so that it needs a product of its own.
        fused = name in active and not (self.training and isinstance(self.spectral_dropout[name], torch.nn.Dropout))
        c = self.bracket(name).c if fused else None
        y = F.linear(z if c is None else z * (1 + c), L0)
        bias = getattr(self.get_base_layer(), "bias", None)
        y = y if bias is None else y + bias
        for other in active:
            if not (fused and other == name):
                y = y + self._change(x, y, other)
        return y.to(x.dtype)

    def unmerge(self) -> None:
        """Drop the merged weight again."""
        name, self._standing_in = self._standing_in, None
        super().unmerge()
        if name is not None:
            self._drop(name)

    def delete_adapter(self, adapter_name: str) -> None:
        """Where the adapter stands in for the base weight, the base layer gets U S V^T first."""
        if adapter_name == self._standing_in:
            weight = self.get_base_weight()
            self._standing_in = None
            self.base_layer.weight.data = weight.contiguous()  # pyright: ignore[reportAttributeAccessIssue]
        super().delete_adapter(adapter_name)

"""L0 and R0 of a saved adapter that was saved without them: from the store, or decomposed again, weight by weight."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from peft import PeftConfig
from torch import Tensor

from milora.adapters.checks import check_fingerprint, check_values
from milora.adapters.config import SpectralConfig
from milora.adapters.start import as_made, layer_factors
from milora.decompositions import default_store
from milora.errors import MiloraError
from milora.models.digest import weight_digest
from milora.models.fingerprint import precision
from milora.models.weights import LinearWeight, linear_weights


class SavedBases:
    """The bases of one adapter.

    Args:
        config: its configuration.
        modules: the modules that it adapts.
        base: its base model; None is the one that the configuration names.
    """

    def __init__(self, config: PeftConfig, modules: Sequence[str], base: str | Path | None) -> None:
        self.config, self.modules = config, modules
        self.base = base or config.base_model_name_or_path

    def of(self, module: str) -> dict[str, Tensor]:
        """L0 and R0 of a module by their names; nothing where the adapter's file holds them.

        Raises:
            MiloraError: the base is not at hand, has no such weight, or is another than the adapter was made on.
        """
        if not isinstance(self.config, SpectralConfig) or self.config.keeps_bases:
            return {}
        if self.base is None:
            raise MiloraError("adapter: was saved without L0 and R0, which are made of its base model; got none")
        if self.config.decompose_from == "dequantised":
            raise MiloraError(
                "adapter: was saved without L0 and R0, which are made of dequantised weights; allowed save_bases=True"
            )
        if module not in self._weights:
            raise MiloraError(f"base {self.base}: has no linear weight {module}")
        factors = layer_factors(
            as_made(self._weights[module].load(), self.config), self.config, module, default_store()
        )
        return {"L0": factors.L0} | ({} if factors.R0 is None else {"R0": factors.R0})

    @cached_property
    def _weights(self) -> dict[str, LinearWeight]:
        assert isinstance(self.config, SpectralConfig) and self.base is not None
        found = {weight.name: weight for weight in linear_weights(self.base, list(self.modules)).weights}
        here = precision(weight.torch_dtype for weight in found.values())
        if here == self.config.base_precision and set(found) == set(self.modules):
            digests = {name: weight_digest(as_made(weight.load(), self.config)) for name, weight in found.items()}
            check_fingerprint(self.config, digests, "its L0 and R0 can be made of that base alone")
            check_values(self.config, digests)
        return found

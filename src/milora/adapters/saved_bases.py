"""L0 and R0 of a saved adapter that was saved without them: from the store, or decomposed again, weight by weight."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch
from peft import PeftConfig
from torch import Tensor

from milora.adapters.config import SpectralConfig
from milora.adapters.start import layer_factors
from milora.decompositions import default_store
from milora.errors import MiloraError
from milora.models.weights import LinearWeight, linear_weights


class SavedBases:
    """The bases of one adapter.

    Args:
        config: its configuration.
        base: its base model; None is the one that the configuration names.
    """

    def __init__(self, config: PeftConfig, base: str | Path | None) -> None:
        self.config = config
        self.base = base or config.base_model_name_or_path

    def of(self, module: str) -> dict[str, Tensor]:
        """L0 and R0 of a module by their names; nothing where the adapter's file holds them.

        Raises:
            MiloraError: the base is not at hand, or has no such weight.
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
        factors = layer_factors(self._weights[module].load(), self.config, module, default_store())
        return {"L0": factors.L0} | ({} if factors.R0 is None else {"R0": factors.R0})

    @cached_property
    def _weights(self) -> dict[str, LinearWeight]:
        assert isinstance(self.config, SpectralConfig) and self.base is not None
        targets = self.config.target_modules
        wanted = targets if isinstance(targets, str) else sorted(targets or ())
        return {weight.name: weight for weight in linear_weights(self.base, wanted).weights}


def check_indices(indices: Tensor, q: int, size: int) -> None:
    """Positions of a scattered core (2, size): whole numbers from 0 to q - 1, none twice.

    Raises:
        MiloraError: they are not.
    """
    if indices.shape != (2, size) or indices.is_floating_point():
        raise MiloraError(f"indices: got {tuple(indices.shape)} {indices.dtype}, allowed {(2, size)} whole numbers")
    if bool((indices < 0).any()) or bool((indices >= q).any()):
        raise MiloraError(f"indices: got {int(indices.min())} to {int(indices.max())}, allowed 0 to {q - 1}")
    flat = indices[0].to(torch.int64) * q + indices[1]
    if len(flat.unique()) < size:
        raise MiloraError(f"indices: got {size - len(flat.unique())} positions twice, allowed each once")

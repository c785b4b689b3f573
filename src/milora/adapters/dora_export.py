"""Leave milora with a magnitude: as PEFT's DoRA, the same formula with the same numbers.

    W' = g (W + s P Q) / ||W + s P Q||_row  =  m (W + B A) / ||W + B A||_row,    B = s P,  A = Q,  m = g

The change inside the norm is what the method would add without a magnitude, and g = g0 + dg is PEFT's
`lora_magnitude_vector`. A row of W that is zero has no direction and no quotient here; there m is the row's norm.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from milora.adapters.config import SpectralConfig
from milora.adapters.delta import INSIDE, AdapterFile, Delta, spectral_delta, wide
from milora.errors import MiloraError


def has_magnitude(file: AdapterFile) -> bool:
    """Whether an adapter's change is a quotient."""
    return isinstance(file.config, SpectralConfig) and file.config.magnitude


def direction(file: AdapterFile, module: str) -> tuple[Delta, Tensor]:
    """The change of one module inside the norm, and its magnitude.

    Args:
        file: an adapter with a magnitude.
        module: the module's name.

    Returns:
        s P Q, and m (out,).

    Raises:
        MiloraError: an embedding, whose quotient PEFT takes over the other side; a row that stays zero, for which PEFT
            divides by zero; factors that do not belong together.
    """
    where = f"adapter: {file.folder}: {module}"
    if module in file.embeddings:
        raise MiloraError(f"{where}: is an embedding with a magnitude, allowed for it: --to merged")
    parts = {part: wide(tensor) for part, tensor in file.parts(module).items()}
    if not {"g0", "dg"} <= set(parts) or not isinstance(file.config, SpectralConfig):
        raise MiloraError(f"{where}: got the factors {', '.join(sorted(parts))}, allowed with g0 and dg")
    g0, dg = parts.pop("g0"), parts.pop("dg")
    try:
        delta = spectral_delta(parts, replace(file.config, magnitude=False), module)
    except MiloraError as error:
        raise MiloraError(f"{where}: {error}") from error
    m, zero = g0 + dg, g0 == 0
    if bool(zero.any()):
        m[zero] = torch.linalg.vector_norm(delta.dense(), dim=1)[zero]
        if bool((m[zero] == 0).any()):
            raise MiloraError(f"{where}: a row of its weight is zero, allowed for it: --to merged")
    return delta, m


def magnitude_tensor(module: str, m: Tensor) -> dict[str, Tensor]:
    """The magnitude under PEFT's name for it."""
    return {f"{INSIDE}{module}.lora_magnitude_vector": m}

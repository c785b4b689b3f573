"""Stacked factors as PEFT's LoRA on parameters (`target_parameters`) keeps them.

    lora_A  (experts r, in)      A[e, k, i] at row e r + k
    lora_B  (out, r experts)     B[e, o, k] at column k experts + e

PEFT wraps a module once for each of its parameters, the first of them innermost: its tensors lie at `base_layer`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import Tensor
from torch.nn import functional as F

from milora.adapters.config import SpectralConfig
from milora.adapters.experts import stacked_pair
from milora.errors import MiloraError

_STACKED = re.compile(r"(dL|dR|L0|R0)_(.+)")

Stacks = dict[tuple[str, str], dict[str, Tensor]]  # by module and parameter, by factor


def stacked_factor(part: str) -> tuple[str, str] | None:
    """A factor and the parameter that it belongs to, from the end of a tensor's name; None for other tensors."""
    found = _STACKED.fullmatch(part)
    return None if found is None else (found[1], found[2])


def check_stack(factors: Mapping[str, Tensor]) -> None:
    """The factors of one stack must belong together.

    Raises:
        MiloraError: they do not.
    """
    if set(factors) not in ({"L0", "dR"}, {"L0", "R0", "dL", "dR"}):
        raise MiloraError(f"got the factors {', '.join(sorted(factors))}, allowed L0, dR or L0, R0, dL, dR")
    L0, dR = factors["L0"].shape, factors["dR"].shape
    other = {"dL": L0, "R0": dR}
    alike = all(factors[name].shape == shape for name, shape in other.items() if name in factors)
    if len(L0) != 3 or len(dR) != 3 or (L0[0], L0[2]) != (dR[0], dR[1]) or not alike:
        shapes = ", ".join(f"{n} {tuple(t.shape)}" for n, t in sorted(factors.items()))
        raise MiloraError(f"got {shapes}, allowed (experts, out, r) and (experts, r, in)")


def read_stacks(keys: Mapping[tuple[str, str], Mapping[str, str]], read: Callable[[str], Tensor], file: str) -> Stacks:
    """The factors of stacks, from their names in a file.

    Raises:
        MiloraError: those of a stack do not belong together.
    """
    found = {where: {factor: read(key) for factor, key in of_it.items()} for where, of_it in keys.items()}
    for (module, parameter), factors in found.items():
        try:
            check_stack(factors)
        except MiloraError as error:
            raise MiloraError(f"{file}: {module}.{parameter}: {error}") from error
    return found


def stacked_rank(factors: Mapping[str, Tensor]) -> int:
    """The rank of a stack as LoRA."""
    return stacked_pair(factors)[1].shape[-2]


def stacked_lora(stacks: Stacks, config: SpectralConfig, rank: int) -> dict[str, Tensor]:
    """The LoRA tensors of the stacks, padded to one rank, with the scale inside B."""
    tensors: dict[str, Tensor] = {}
    for (module, parameter), factors in stacks.items():
        of_module = sorted((p for m, p in stacks if m == module), key=lambda p, m=module: _place(f"{m}.{p}", config))
        path = module + ".base_layer" * (len(of_module) - 1 - of_module.index(parameter))
        B, A = stacked_pair(factors)  # (experts, out, q), (experts, q, in)
        padding = rank - A.shape[-2]
        B = F.pad(config.scale(f"{module}.{parameter}") * B, (0, padding))
        A = F.pad(A, (0, 0, 0, padding))
        tensors[f"{path}.lora_A.weight"] = A.flatten(0, 1).contiguous()
        tensors[f"{path}.lora_B.weight"] = B.permute(1, 2, 0).flatten(1).contiguous()
    return tensors


def _place(key: str, config: SpectralConfig) -> int:
    """The place of a parameter in `target_parameters`, which stand in the order of their module."""
    names = config.target_parameters or []
    return next((i for i, name in enumerate(names) if f".{key}".endswith(f".{name}")), len(names))

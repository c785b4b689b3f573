"""The sum of adapters of one method on the same frozen factors, as an adapter of that method; see `compose.py`."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from milora.adapters.config import SpectralConfig
from milora.adapters.delta import INSIDE, AdapterFile
from milora.adapters.registration import PREFIX
from milora.errors import MiloraError
from milora.methods import get_method
from milora.methods.core import Banded, band_positions


def summed(files: Sequence[AdapterFile], weights: Sequence[float]) -> tuple[SpectralConfig, dict[str, Tensor]]:
    """The configuration and the tensors, by their names in a file, of sum_k a_k dW_k.

    Args:
        files: adapters of one method whose frozen factors agree.
        weights: a_k.

    Raises:
        MiloraError: SVFT patterns whose union has more positions than a small weight has.
    """
    configs = [f.config for f in files if isinstance(f.config, SpectralConfig)]
    config = copy.copy(configs[0])
    numbers = {m: [_numbers(f, c, m) for f, c in zip(files, configs, strict=True)] for m in files[0].modules}
    scales = {m: [a * c.scale(m) / configs[0].scale(m) for a, c in zip(weights, configs, strict=True)] for m in numbers}
    frozen = {m: files[0].parts(m, made=False) for m in numbers}
    tensors = {m: {n: t for n, t in frozen[m].items() if n in ("L0", "R0", "indices")} for m in numbers}
    # What the authors' code does otherwise is in the numbers by now; LoRA-XS's only difference is its start.
    config.as_published = config.as_published and config.method == "lora_xs"
    positions = {m: [_positions(f, c, m) for f, c in zip(files, configs, strict=True)] for m in numbers}
    if any(not torch.equal(p, of_each[0]) for of_each in positions.values() for p in of_each[1:]):
        _unite(config, tensors, {m: _q(files[0], m) for m in numbers}, positions, numbers, scales)
    else:
        trained = "dR" if get_method(config.method).trains == frozenset("R") else "C"
        for m, each in numbers.items():
            tensors[m][trained] = torch.stack([a * n for a, n in zip(scales[m], each, strict=True)]).sum(0)
    return config, {f"{INSIDE}{m}.{PREFIX}{n}": t for m, named in tensors.items() for n, t in named.items()}


def _numbers(file: AdapterFile, config: SpectralConfig, module: str) -> Tensor:
    """R of MiCA, or the numbers that stand in the core: z - 1, M, C."""
    method = get_method(config.method)
    parts = file.parts(module, made=config.as_published)
    if "dR" in parts:
        return parts["dR"]
    return method.values(parts["C"], parts.get("R0", parts["C"]), config.choice(module))


def _positions(file: AdapterFile, config: SpectralConfig, module: str) -> Tensor:  # (size,)
    """Where SVFT's numbers stand in M, as i q + j; nothing for other methods."""
    parts = file.parts(module, made=False)
    if config.method != "svft":
        return torch.empty(0, dtype=torch.int64)
    if "indices" in parts:
        i, j = parts["indices"].to(torch.int64)
    else:
        q = _q(file, module)
        core = get_method("svft").core(q, config.choice(module))
        i, j = band_positions(q, core.d if isinstance(core, Banded) else 0)
    return i * _q(file, module) + j


def _q(file: AdapterFile, module: str) -> int:
    return file.parts(module)["L0"].shape[1]


def _unite(
    config: SpectralConfig,
    tensors: dict[str, dict[str, Tensor]],
    widths: dict[str, int],
    positions: dict[str, list[Tensor]],
    numbers: dict[str, list[Tensor]],
    scales: dict[str, list[float]],
) -> None:
    """One scattered pattern for all: the union of the positions, as many in every module as in the largest union."""
    union = {m: torch.cat(each).unique() for m, each in positions.items()}
    config.pattern, config.d, config.entries = "random", 0, max(len(flat) for flat in union.values())
    for m, flat in union.items():
        q = widths[m]
        if config.entries > q * q:
            raise MiloraError(f"patterns: got {config.entries} positions together, allowed {q * q} in {m}")
        free = torch.ones(q * q, dtype=torch.bool)
        free[flat] = False
        flat = torch.cat([flat, free.nonzero().flatten()[: config.entries - len(flat)]]).sort().values
        M = torch.zeros(config.entries, dtype=numbers[m][0].dtype)
        for a, at, values in zip(scales[m], positions[m], numbers[m], strict=True):
            M[torch.searchsorted(flat, at)] += a * values
        tensors[m] |= {"indices": torch.stack([flat // q, flat % q]).to(torch.int32), "C": M}

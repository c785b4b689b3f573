"""Come into milora: a LoRA, MiCA or PiSSA adapter trained by PEFT becomes an adapter of this package, the change kept.

    LoRA, MiCA    W' = W + s B A                  L0 = B,  dR = A                               method mica
    PiSSA         W' = W - s B0 A0 + s B A        L0 = B0,  R0 = A0,  dL = B - B0,  dR = A - A0  method pissa

PEFT saves of a PiSSA adapter only B and A, and makes B0, A0 anew from the base whenever it loads it. Those of "pissa"
are the base's r largest triplets, which are found here too; a pair of columns may come with the other sign, which
leaves B0 A0 as it is, and takes that of B's. Those of "pissa_niter_N" came from a randomised decomposition without a
seed and cannot be made again, by PEFT neither: the initial adapter must be at hand.

What trains on afterwards: of mica R alone (PEFT's A; its B stays as it is), of pissa L and R.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor

from milora.adapters.attach import check_adapter
from milora.adapters.config import SpectralConfig
from milora.adapters.delta import INSIDE, AdapterFile, Delta, spectral_delta
from milora.adapters.export import check_free, write_adapter
from milora.adapters.registration import PREFIX
from milora.adapters.saved_config import CONFIG, read_config
from milora.adapters.start import layer_factors
from milora.decompositions import Digest, default_store
from milora.errors import MiloraError
from milora.models.digest import weight_digest
from milora.models.fingerprint import fingerprint, precision
from milora.models.targets import matching_name
from milora.models.weights import LinearWeight, linear_weights


@dataclass(frozen=True)
class Imported:
    """What was written.

    Attributes:
        path: the folder.
        method: the method of the adapter there.
        trains: what of it trains on, in words.
        start_distance: for PiSSA, the largest ||B - B0|| / ||B0|| of a layer; near or above 1, B0 is hardly B's start.
    """

    path: Path
    method: str
    trains: str
    start_distance: float = 0.0


def import_adapter(
    adapter: str | Path,
    model_name_or_path: str | Path,
    output: str | Path,
    *,
    initial: str | Path | None = None,
    overwrite: bool = False,
) -> Imported:
    """Write an adapter trained by PEFT as an adapter of this package.

    Args:
        adapter: its folder.
        model_name_or_path: the base that it was trained on, untouched; its weights are read one by one.
        output: the folder to write.
        initial: for PiSSA, the folder of the adapter as it was before training; exact for every kind of PiSSA, and
            the only way for "pissa_niter_N".
        overwrite: replace the folder if it stands.

    Raises:
        MiloraError: no LoRA adapter there, or one that is not s B A on linear layers (DoRA, OLoRA, CorDA, ...), a base
            without its layers or with other shapes, a PiSSA start that cannot be made again, `output` exists.
    """
    target = Path(output).expanduser()
    check_free(target, overwrite, adapter, model_name_or_path, initial)
    file, pissa = _read(Path(adapter).expanduser())
    start = None if initial is None else _read(Path(initial).expanduser())[0]
    _check_start(file, pissa, start)
    settings = _settings(file, "pissa" if pissa else "mica", model_name_or_path)
    tensors: dict[str, Tensor] = {name: file.tensor(name) for name in file.others}
    digests: dict[str, Digest] = {}
    weights = _weights(file, model_name_or_path)
    distance = 0.0
    for module, weight in weights.items():
        W = weight.load()  # (out, in)
        digests[module] = weight_digest(W)
        parts = file.parts(module)
        factors, moved = _pissa(parts, W, settings, module, start) if pissa else (_frozen_left(parts), 0.0)
        distance = max(distance, moved)
        tensors |= {f"{INSIDE}{module}.{PREFIX}{name}": t.contiguous() for name, t in factors.items()}
    settings.base_fingerprint = fingerprint(sorted(digests.items()))
    settings.base_precision = precision(weight.torch_dtype for weight in weights.values())
    write_adapter(target, tensors, settings.to_dict())
    return Imported(target, settings.method, "L and R" if pissa else "R (PEFT's A); PEFT's B is frozen", distance)


def pissa_file(folder: Path, model_name_or_path: str | Path) -> tuple[AdapterFile, Callable[[str, Tensor], Delta]]:
    """A PiSSA adapter of PEFT's, and what it makes of a module's base weight: s (B A - B0 A0), B0 A0 made again.

    Raises:
        MiloraError: no plain PiSSA adapter there, or one whose start cannot be made again.
    """
    file, pissa = _read(folder)
    _check_start(file, pissa, None)
    settings = _settings(file, "pissa", model_name_or_path)

    def delta(module: str, W: Tensor) -> Delta:  # (out, in)
        return spectral_delta(_pissa(file.parts(module), W, settings, module, None)[0], settings, module)

    return file, delta


def _read(folder: Path) -> tuple[AdapterFile, bool]:
    """A LoRA adapter's file, read for its A and B whatever it started from, and whether that was PiSSA's start."""
    check_adapter(folder)
    config = read_config(folder)
    if type(config) is not LoraConfig:
        raise MiloraError(f"import: {folder} holds a {type(config).__name__}, allowed LoRA, MiCA or PiSSA of PEFT")
    pissa = isinstance(config.init_lora_weights, str) and config.init_lora_weights.lower().startswith("pissa")
    read_as = copy.copy(config)
    if pissa:
        read_as.init_lora_weights = True
    file = AdapterFile(folder, read_as)
    file.config = config
    return file, pissa


def _check_start(file: AdapterFile, pissa: bool, start: AdapterFile | None) -> None:
    config: Any = file.config
    if start is not None and not pissa:
        raise MiloraError(f"initial: {file.folder} starts from {config.init_lora_weights!r}, allowed only with PiSSA")
    if start is not None and start.modules != file.modules:
        raise MiloraError(f"initial: {start.folder} adapts other modules than {file.folder}")
    if pissa and start is None and config.init_lora_weights.lower() != "pissa":
        raise MiloraError(
            f"import: {file.folder / CONFIG}: init_lora_weights is {config.init_lora_weights!r}, a randomised start"
            " without a seed that PEFT itself cannot make again; allowed with --initial, the adapter before training"
        )


def _settings(file: AdapterFile, method: str, model_name_or_path: str | Path) -> SpectralConfig:
    config: Any = file.config

    def used(pattern: Mapping[str, Any] | None) -> dict[str, Any]:
        # PEFT passes over a pattern that matches nothing; here it would be refused.
        return {p: v for p, v in (pattern or {}).items() if matching_name(file.modules, p)}

    return SpectralConfig(
        method=method,
        r=config.r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        use_rslora=config.use_rslora,
        rank_pattern=used(config.rank_pattern),
        alpha_pattern=used(config.alpha_pattern),
        target_modules=config.target_modules,
        exclude_modules=config.exclude_modules,
        layers_to_transform=config.layers_to_transform,
        layers_pattern=config.layers_pattern,
        modules_to_save=config.modules_to_save,
        fan_in_fan_out=config.fan_in_fan_out,
        bias="spectral_only" if config.bias == "lora_only" else config.bias,
        task_type=config.task_type,
        base_model_name_or_path=str(model_name_or_path),
        inference_mode=True,
    )


def _weights(file: AdapterFile, model_name_or_path: str | Path) -> dict[str, LinearWeight]:
    """The base's weights of the adapted modules, in sorted order, shapes and ranks checked."""
    found = {w.name: w for w in linear_weights(model_name_or_path, file.modules).weights}
    for module in file.modules:
        delta = file.delta(module)
        if module not in found:
            raise MiloraError(f"import: base {model_name_or_path} has no weight of its own for {module}")
        if found[module].shape != delta.shape:
            raise MiloraError(f"import: {module} is {found[module].shape} (out, in), in the adapter {delta.shape}")
        if delta.rank > min(delta.shape):
            raise MiloraError(f"import: r is {delta.rank} for {module} {delta.shape}, allowed 1 to {min(delta.shape)}")
    return {module: found[module] for module in file.modules}


def _frozen_left(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"L0": _float32(parts["lora_B"]), "dR": _float32(parts["lora_A"])}


def _pissa(
    parts: Mapping[str, Tensor],
    W: Tensor,  # (out, in)
    settings: SpectralConfig,
    module: str,
    start: AdapterFile | None,
) -> tuple[dict[str, Tensor], float]:
    """The factors at the start and their changes, and ||B - B0|| / ||B0||."""
    B, A = _float32(parts["lora_B"]), _float32(parts["lora_A"])  # (out, r), (r, in)
    if start is not None:
        first = start.parts(module)
        B0, A0 = _float32(first["lora_B"]), _float32(first["lora_A"])
        if B0.shape != B.shape or A0.shape != A.shape:
            raise MiloraError(f"initial: {module} has other shapes in {start.folder}")
    else:
        factors = layer_factors(W, settings, module, default_store())
        assert factors.R0 is not None
        B0, A0 = _float32(factors.L0), _float32(factors.R0)
        sign = torch.where((B * B0).sum(dim=0) < 0, -1.0, 1.0)  # (r,)
        B0, A0 = B0 * sign, A0 * sign[:, None]
    moved = float(torch.linalg.vector_norm(B - B0) / torch.linalg.vector_norm(B0).clamp_min(1e-30))
    return {"L0": B0, "R0": A0, "dL": B - B0, "dR": A - A0}, moved


def _float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float32)

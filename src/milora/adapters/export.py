"""Leave milora: write an adapter as plain LoRA, which PEFT, vLLM and llama.cpp load on the untouched base.

    s (L R - L0 R0)  =  s (L dR + dL R0)  =  B A,    B = s [L, dL]  (out, 2r),   A = [dR; R0]  (2r, in)

exactly, with the scale inside B, so that the reader's scale is lora_alpha / rank = 1. Where only R trains, B = s L0 and
A = dR, of rank r. Layers of smaller rank are padded with zeros to the largest: the reader needs no patterns.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor

from milora.adapters.attach import CONFIG, WEIGHTS, check_adapter, read_config, read_weights
from milora.adapters.config import SpectralConfig
from milora.adapters.layer import features
from milora.adapters.registration import PREFIX
from milora.errors import MiloraError
from milora.models.atomic import replacing
from milora.models.checkpoint import is_local
from milora.models.load import empty_model

_INSIDE = "base_model.model."


def export_lora(
    adapter: str | Path,
    model_name_or_path: str | None,
    output: str | Path,
    *,
    overwrite: bool = False,
    check_base: bool = False,
) -> Path:
    """Write a saved spectral adapter as a plain LoRA adapter.

    Args:
        adapter: the folder of the saved adapter.
        model_name_or_path: the base that the export's configuration names; None keeps the adapter's own.
        output: the folder to write.
        overwrite: replace the folder if it stands.
        check_base: compare the layers and shapes of a local base with the adapter's first.

    Returns:
        `output`.

    Raises:
        MiloraError: no spectral adapter there, `output` exists, or the base has other layers.
    """
    folder, target = Path(adapter).expanduser(), Path(output).expanduser()
    if target.exists() and any(target.iterdir() if target.is_dir() else [target]) and not overwrite:
        raise MiloraError(f"output: {target} exists, allowed a new folder, or --overwrite")
    check_adapter(folder)
    config = read_config(folder)
    if not isinstance(config, SpectralConfig):
        kind = type(config).__name__
        raise MiloraError(f"adapter: {folder} holds a {kind}, which PEFT loads as it is; allowed an adapter of milora")
    tensors, rank = lora_tensors(read_weights(folder), config)
    if check_base and model_name_or_path is not None and is_local(model_name_or_path):
        _check_fits(tensors, model_name_or_path)
    with replacing(target) as temporary:
        temporary.mkdir()
        save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt"})
        fields = _lora_config(config, rank, model_name_or_path)
        (temporary / CONFIG).write_text(json.dumps(fields, indent=2, sort_keys=True), encoding="utf-8")
    return target


def lora_tensors(weights: dict[str, Tensor], config: SpectralConfig) -> tuple[dict[str, Tensor], int]:
    """The LoRA tensors of a spectral adapter's file, and their common rank.

    Args:
        weights: tensors by name: `<module>.spectral_L0` and so on; biases and modules_to_save pass through.
        config: the adapter's configuration.
    """
    modules = sorted({n.rsplit(f".{PREFIX}", 1)[0] for n in weights if f".{PREFIX}" in n})
    pairs = {m: lora_pair(weights, m, config.scale(m.removeprefix(_INSIDE))) for m in modules}
    rank = max(A.shape[0] for _, A in pairs.values())
    tensors = {n: t for n, t in weights.items() if f".{PREFIX}" not in n}
    for module, (B, A) in pairs.items():
        padding = rank - A.shape[0]
        tensors[f"{module}.lora_B.weight"] = torch.nn.functional.pad(B, (0, padding)).contiguous()
        tensors[f"{module}.lora_A.weight"] = torch.nn.functional.pad(A, (0, 0, 0, padding)).contiguous()
    return tensors, rank


def lora_pair(weights: dict[str, Tensor], module: str, scale: float) -> tuple[Tensor, Tensor]:
    """B (out, q) and A (q, in) of one module, with B A = s (L R - L0 R0); q = 2r, or r where only R trains."""
    L0, dR = weights[f"{module}.{PREFIX}L0"], weights[f"{module}.{PREFIX}dR"]
    if f"{module}.{PREFIX}dL" not in weights:
        return scale * L0, dR
    dL, R0 = weights[f"{module}.{PREFIX}dL"], weights[f"{module}.{PREFIX}R0"]
    return scale * torch.cat([L0 + dL, dL], dim=1), torch.cat([dR, R0])


def _check_fits(tensors: dict[str, Tensor], model_name_or_path: str) -> None:
    """The base that the export will name must have the layers that it changes, in their shapes."""
    layers = dict(empty_model(model_name_or_path).named_modules())
    for name in (n for n in tensors if n.endswith(".lora_A.weight")):
        module = name.removesuffix(".lora_A.weight")
        layer = layers.get(module.removeprefix(_INSIDE))
        if layer is None:
            raise MiloraError(f"base {model_name_or_path}: has no layer {module.removeprefix(_INSIDE)}")
        shape = (tensors[name].shape[1], tensors[f"{module}.lora_B.weight"].shape[0])
        if features(layer) != shape:
            raise MiloraError(
                f"base {model_name_or_path}: {module} is {features(layer)} (in, out), the adapter {shape}"
            )


def _lora_config(config: SpectralConfig, rank: int, model_name_or_path: str | None) -> dict[str, Any]:
    lora = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=config.target_modules,
        exclude_modules=config.exclude_modules,
        layers_to_transform=config.layers_to_transform,
        layers_pattern=config.layers_pattern,
        modules_to_save=config.modules_to_save,
        bias="lora_only" if config.bias == "spectral_only" else config.bias,  # pyright: ignore[reportArgumentType]
        task_type=config.task_type,
        base_model_name_or_path=model_name_or_path or config.base_model_name_or_path,
        inference_mode=True,
    )
    return {k: sorted(v) if isinstance(v, set) else v for k, v in lora.to_dict().items()}  # pyright: ignore

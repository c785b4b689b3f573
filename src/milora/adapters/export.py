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
from milora.methods import Bracket, get_method
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
    pairs = {m: lora_pair(weights, m, config) for m in modules}
    rank = max(A.shape[0] for _, A in pairs.values())
    tensors = {n: t for n, t in weights.items() if f".{PREFIX}" not in n}
    for module, (B, A) in pairs.items():
        padding = rank - A.shape[0]
        tensors[f"{module}.lora_B.weight"] = torch.nn.functional.pad(B, (0, padding)).contiguous()
        tensors[f"{module}.lora_A.weight"] = torch.nn.functional.pad(A, (0, 0, 0, padding)).contiguous()
    return tensors, rank


def lora_pair(weights: dict[str, Tensor], module: str, config: SpectralConfig) -> tuple[Tensor, Tensor]:
    """B (out, q) and A (q, in) of one module, with B A = s (L C R - L0 C0 R0)."""
    P, Q = saved_bracket(weights, module, config).pair()
    return config.scale(module.removeprefix(_INSIDE)) * P, Q


def saved_bracket(weights: dict[str, Tensor], module: str, config: SpectralConfig) -> Bracket:
    """The bracket of one module from the tensors of its file.

    Raises:
        MiloraError: the file does not hold the bases, or holds a magnitude.
    """
    parts = {n.removeprefix(f"{module}.{PREFIX}"): t for n, t in weights.items() if n.startswith(f"{module}.{PREFIX}")}
    if "L0" not in parts:
        raise MiloraError(f"adapter: holds no L0 of {module}, allowed one that was saved with save_bases=True")
    if "dg" in parts:
        raise MiloraError("adapter: has a magnitude, allowed one without: merge it instead")
    method, choice = get_method(config.method), config.choice(module.removeprefix(_INSIDE))
    L0, R0 = parts["L0"], parts.get("R0")
    core = method.core(L0.shape[1], choice)
    if core is None or R0 is None:
        return Bracket(choice.scale, L0, R0, parts.get("dL"), parts["dR"])
    c = method.values(parts["C"], R0, choice)
    return Bracket(choice.scale, L0, R0, core=core, c=c, indices=parts.get("indices"))


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

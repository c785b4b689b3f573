"""Leave milora: write an adapter as plain LoRA, which PEFT, vLLM and llama.cpp load on the untouched base.

    s (L R - L0 R0)  =  s (L0 dR + dL R)  =  B A,    B = s [L0, dL]  (out, 2r),   A = [dR; R]  (2r, in)

exactly, with the scale inside B, so that the reader's scale is lora_alpha / rank = 1. Where only R trains, B = s L0 and
A = dR, of rank r. Layers of smaller rank are padded with zeros to the largest: the reader needs no patterns. With a
rank, B A is the best approximation of that rank (`milora.adapters.truncate`). With a magnitude it is PEFT's DoRA of the
same B A (`milora.adapters.dora_export`).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor, nn

from milora.adapters.attach import WEIGHTS
from milora.adapters.base_layers import features
from milora.adapters.config import SpectralConfig
from milora.adapters.delta import INSIDE, AdapterFile
from milora.adapters.dora_export import direction, has_magnitude, magnitude_tensor
from milora.adapters.expert_export import stacked_lora, stacked_rank
from milora.adapters.limits import Limit, limits, refuse
from milora.adapters.saved_config import CONFIG
from milora.adapters.truncate import LayerError, truncated
from milora.errors import MiloraError
from milora.models.atomic import check_free, replacing
from milora.models.checkpoint import is_local
from milora.models.load import empty_model


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: the folder or file.
        rank: of every layer of it.
        errors: what a truncation left out, layer by layer; empty for an exact export.
        limits: what other programs refuse of it, or need to be told.
    """

    path: Path
    rank: int
    errors: list[LayerError] = field(default_factory=list[LayerError])
    limits: list[Limit] = field(default_factory=list[Limit])


def export_lora(
    adapter: str | Path,
    model_name_or_path: str | Path | None,
    output: str | Path,
    *,
    overwrite: bool = False,
    check_base: bool = False,
) -> Path:
    """Write a saved spectral adapter as a plain LoRA adapter, exactly; see `write_lora`."""
    return write_lora(adapter, model_name_or_path, output, overwrite=overwrite, check_base=check_base).path


def write_lora(
    adapter: str | Path,
    model_name_or_path: str | Path | None,
    output: str | Path,
    *,
    rank: int | None = None,
    readers: tuple[str, ...] = (),
    overwrite: bool = False,
    check_base: bool = False,
) -> Exported:
    """Write a saved adapter as a plain LoRA adapter.

    Args:
        adapter: the folder of the saved adapter; a plain LoRA too, where it is to be truncated.
        model_name_or_path: the base that the export's configuration names; None keeps the adapter's own.
        output: the folder to write.
        rank: the rank of the best approximation to write; None writes the change exactly.
        readers: programs that must be able to load it: "vllm", "llama.cpp".
        overwrite: replace the folder if it stands.
        check_base: compare the layers and shapes of a local base with the adapter's first.

    Raises:
        MiloraError: no such adapter there, `output` exists, the base has other layers, or one of `readers` would
            refuse it.
    """
    target = Path(output).expanduser()
    check_free(target, overwrite, adapter, model_name_or_path)
    base = None if model_name_or_path is None else str(model_name_or_path)
    file = AdapterFile(adapter, base=base)
    if not isinstance(file.config, SpectralConfig) and rank is None:
        kind = type(file.config).__name__
        raise MiloraError(
            f"adapter: {file.folder} holds a {kind}, which PEFT loads as it is; allowed an adapter of milora, or --rank"
        )
    tensors, common, errors = lora_tensors(file, rank)
    tied = None
    if check_base and base is not None and is_local(base):
        tied = tied_head(check_fits(file, base))
    config = lora_config(file, common, base)
    found = limits(config, file.modules, tied)
    refuse(found, readers)
    write_adapter(target, tensors, config.to_dict())
    return Exported(target, common, errors, found)


def lora_tensors(file: AdapterFile, rank: int | None = None) -> tuple[dict[str, Tensor], int, list[LayerError]]:
    """The LoRA tensors of an adapter by PEFT's names, their common rank, and what a truncation left out.

    Args:
        file: the adapter; its biases and modules_to_save pass through.
        rank: of the best approximation; None for the change itself.

    Raises:
        MiloraError: a rank below 1, or a change that is not finite in float32.
    """
    if rank is not None and rank < 1:
        raise MiloraError(f"rank: got {rank}, allowed a whole number from 1 on")
    if rank is not None and has_magnitude(file):
        raise MiloraError(f"--rank: {file.folder} has a magnitude, whose change is no product of factors; allowed none")
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    errors: list[LayerError] = []
    magnitudes: dict[str, Tensor] = {}
    for module in file.modules:
        if has_magnitude(file):
            delta, m = direction(file, module)
            magnitudes |= magnitude_tensor(module, m)
        else:
            delta = file.delta(module)
        if rank is None:
            pairs[module] = delta.P, delta.Q
        else:
            B, A, error = truncated(delta, rank, module)
            pairs[module] = B, A
            errors.append(error)
        if not all(bool(torch.isfinite(factor).all()) for factor in pairs[module]):
            raise MiloraError(f"adapter: {file.folder}: {module}: its change is over float32's largest number")
    if rank is not None:
        file.refuse_fused("--rank")
    stacks = file.stacks()
    common = max([A.shape[0] for _, A in pairs.values()] + [stacked_rank(factors) for factors in stacks.values()])
    tensors = {name: file.tensor(name) for name in file.others} | named_pairs(pairs, common, file.embeddings)
    tensors |= magnitudes
    if isinstance(file.config, SpectralConfig):
        tensors |= {f"{INSIDE}{name}": tensor for name, tensor in stacked_lora(stacks, file.config, common).items()}
    return tensors, common, errors


def named_pairs(
    pairs: Mapping[str, tuple[Tensor, Tensor]], rank: int, embeddings: Collection[str]
) -> dict[str, Tensor]:
    """B (out, k) and A (k, in) of each module by PEFT's names, padded with zeros to one rank."""
    tensors: dict[str, Tensor] = {}
    for module, (B, A) in pairs.items():
        padding = rank - A.shape[0]
        B, A = torch.nn.functional.pad(B, (0, padding)), torch.nn.functional.pad(A, (0, 0, 0, padding))
        names = ("lora_embedding_B", "lora_embedding_A") if module in embeddings else ("lora_B.weight", "lora_A.weight")
        tensors |= {f"{INSIDE}{module}.{name}": t.contiguous() for name, t in zip(names, (B, A), strict=True)}
    return tensors


def write_adapter(target: Path, tensors: Mapping[str, Tensor], fields: Mapping[str, Any]) -> None:
    """Write an adapter's folder, whole or not at all.

    Args:
        target: the folder.
        tensors: by their names in the file.
        fields: of the configuration; sets become sorted lists.
    """
    with replacing(target) as temporary:
        temporary.mkdir()
        save_file({n: t.contiguous() for n, t in tensors.items()}, temporary / WEIGHTS, metadata={"format": "pt"})
        plain = {name: sorted(value) if isinstance(value, set) else value for name, value in fields.items()}
        (temporary / CONFIG).write_text(json.dumps(plain, indent=2, sort_keys=True), encoding="utf-8")


def check_fits(file: AdapterFile, model_name_or_path: str | Path) -> nn.Module:
    """The base that an export will name must have the layers that it changes, in their shapes; it comes empty."""
    model = empty_model(model_name_or_path)
    layers = dict(model.named_modules())
    for module in file.modules:
        layer = layers.get(module)
        if layer is None:
            raise MiloraError(f"base {model_name_or_path}: has no layer {module}")
        out, in_ = (direction(file, module)[0] if has_magnitude(file) else file.delta(module)).shape
        if features(layer) != (in_, out):
            raise MiloraError(
                f"base {model_name_or_path}: {module} is {features(layer)} (in, out), the adapter {(in_, out)}"
            )
    return model


def tied_head(model: Any) -> str | None:
    """The name of the output head, where it shares its weight with the embedding."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight is not embedding.weight:
        return None
    return next(n for n, m in model.named_modules() if m is head)


def lora_config(file: AdapterFile, rank: int, model_name_or_path: str | None) -> LoraConfig:
    """The configuration of a LoRA (a DoRA, with a magnitude) with its scale inside B, for the modules of an adapter."""
    config: Any = file.config
    return LoraConfig(
        r=rank,
        lora_alpha=rank,
        use_dora=has_magnitude(file),
        target_modules=config.target_modules,
        target_parameters=getattr(config, "target_parameters", None),
        exclude_modules=config.exclude_modules,
        layers_to_transform=config.layers_to_transform,
        layers_pattern=config.layers_pattern,
        modules_to_save=config.modules_to_save,
        bias="lora_only" if config.bias == "spectral_only" else config.bias,
        task_type=config.task_type,
        base_model_name_or_path=model_name_or_path or config.base_model_name_or_path,
        inference_mode=True,
    )

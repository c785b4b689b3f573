"""An adapter as the GGUF file that llama.cpp loads with --lora.

The form is that of llama.cpp's own converter
(https://github.com/ggml-org/llama.cpp/blob/master/convert_lora_to_gguf.py) as the loader reads it
(https://github.com/ggml-org/llama.cpp/blob/master/src/llama-adapter.cpp): general.type "adapter", general.architecture
that of the base, adapter.type "lora", adapter.lora.alpha, and for each weight `<name>.lora_a` (r, in) and
`<name>.lora_b` (out, r) in float32. The loader scales by alpha / r with r of each tensor; all are padded to one rank
and alpha is that rank, so that the scale is 1.

Names are those of the package gguf. llama.cpp stores the rows of Llama's q and k in another order of rotary pairs
(https://github.com/ggml-org/llama.cpp/blob/master/conversion/llama.py, `permute`): the rows of lora_b move with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from milora.adapters.delta import INSIDE, AdapterFile
from milora.adapters.dora_export import has_magnitude
from milora.adapters.export import Exported, check_fits, check_free, lora_tensors, tied_head
from milora.adapters.limits import Limit, head_limit
from milora.errors import MiloraError
from milora.models.atomic import replacing
from milora.models.load import empty_model

# transformers' model_type: llama.cpp's architecture, and whether its converter reorders the rows of q and k. Only those
# whose converter (conversion/llama.py, qwen.py, gemma.py, phi.py) does nothing else to linear weights.
_ARCHITECTURES = {
    "llama": ("llama", True),
    "mistral": ("llama", True),
    "qwen2": ("qwen2", False),
    "qwen3": ("qwen3", False),
    "gemma": ("gemma", False),
    "gemma2": ("gemma2", False),
    "gemma3_text": ("gemma3", False),
    "phi3": ("phi3", False),
}


@dataclass(frozen=True)
class Layout:
    """How llama.cpp calls the linear weights of a model, and in which order it keeps their rows.

    Attributes:
        architecture: llama.cpp's name of it.
        names: llama.cpp's name of each linear weight by the module's.
        heads: by module, the number of heads whose rows are reordered.
    """

    architecture: str
    names: dict[str, str]
    heads: dict[str, int]

    def rows(self, module: str, B: Tensor) -> Tensor:  # (out, r)
        """The rows of a factor in llama.cpp's order."""
        n = self.heads.get(module)
        return B if n is None else B.reshape(n, 2, B.shape[0] // n // 2, -1).swapaxes(1, 2).reshape(B.shape)

    def rows_back(self, module: str, B: Tensor) -> Tensor:  # (out, r)
        """The rows of a factor of llama.cpp's in the model's order."""
        n = self.heads.get(module)
        return B if n is None else B.reshape(n, B.shape[0] // n // 2, 2, -1).swapaxes(1, 2).reshape(B.shape)


def layout(model_name_or_path: str | Path, modules: list[str]) -> Layout:
    """Find llama.cpp's names of a base model's linear weights.

    Args:
        model_name_or_path: the base; its config.json is read.
        modules: the modules that are asked for.

    Raises:
        MiloraError: no package gguf, an architecture that is not known here, a module that llama.cpp has no weight
            for, or an output head that shares the embedding's weight.
    """
    if find_spec("gguf") is None:
        raise MiloraError("gguf-lora: the package gguf is not installed; pip install 'milora[demo]'")
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    model: Any = empty_model(model_name_or_path)
    config = model.config
    if config.model_type not in _ARCHITECTURES:
        raise MiloraError(
            f"gguf-lora: got a base of type {config.model_type}, allowed {', '.join(_ARCHITECTURES)};"
            " llama.cpp's convert_lora_to_gguf.py reads --to lora"
        )
    architecture, reordered = _ARCHITECTURES[config.model_type]
    arch = next(key for key, name in MODEL_ARCH_NAMES.items() if name == architecture)
    table = get_tensor_name_map(arch, config.num_hidden_layers)
    head = tied_head(model)
    if head in modules:
        raise MiloraError(f"gguf-lora: {head_limit(head)}")
    found = {module: table.get_name(module) for module in modules}
    unknown = [module for module, name in found.items() if name is None]
    if unknown:
        raise MiloraError(f"gguf-lora: llama.cpp's {architecture} has no weight for {unknown[0]}")
    count = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads or config.num_attention_heads}
    heads = {m: count[m.rsplit(".", 1)[-1]] for m in modules if reordered and m.endswith((".q_proj", ".k_proj"))}
    return Layout(architecture, {m: f"{name}.weight" for m, name in found.items()}, heads)


def write_gguf_lora(
    adapter: str | Path,
    model_name_or_path: str | Path,
    output: str | Path,
    *,
    rank: int | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write a saved adapter as a GGUF LoRA file.

    Args:
        adapter: the folder of the saved adapter, of this package or a plain LoRA.
        model_name_or_path: its base.
        output: the file to write.
        rank: of the best approximation; None writes the change exactly.
        overwrite: replace the file if it stands.

    Raises:
        MiloraError: see `AdapterFile` and `layout`; `output` exists; biases or modules_to_save, which llama.cpp
            does not load.
    """
    target = Path(output).expanduser()
    if target.is_dir():
        raise MiloraError(f"output: {target} is a folder, allowed a file, e.g. adapter.gguf")
    check_free(target, overwrite, adapter, model_name_or_path, file=True)
    file = AdapterFile(adapter, base=model_name_or_path)
    if file.others:
        limit = Limit("llama.cpp", f"{next(iter(file.other()))} is trained in full; use --to merged")
        raise MiloraError(f"gguf-lora: {limit}")
    if has_magnitude(file):
        raise MiloraError(f"gguf-lora: {Limit('llama.cpp', 'the adapter has a magnitude; use --to merged')}")
    check_fits(file, model_name_or_path)
    file.refuse_fused("gguf-lora")
    if file.embeddings:
        raise MiloraError(f"gguf-lora: {min(file.embeddings)} is an embedding, allowed linear layers; use --to merged")
    shape = layout(model_name_or_path, file.modules)
    tensors, common, errors = lora_tensors(file, rank)
    with replacing(target) as temporary:
        _write(temporary, shape, tensors, common)
    return Exported(target, common, errors)


def _write(path: Path, shape: Layout, tensors: Mapping[str, Tensor], rank: int) -> None:
    from gguf import GGUFType, GGUFWriter, Keys, LlamaFileType

    writer = GGUFWriter(path, shape.architecture)
    try:
        writer.add_type(GGUFType.ADAPTER)
        writer.add_string(Keys.Adapter.TYPE, "lora")
        writer.add_float32(Keys.Adapter.LORA_ALPHA, float(rank))
        writer.add_file_type(LlamaFileType.ALL_F32)
        for module, name in shape.names.items():
            A = tensors[f"{INSIDE}{module}.lora_A.weight"]
            B = shape.rows(module, tensors[f"{INSIDE}{module}.lora_B.weight"])
            writer.add_tensor(f"{name}.lora_a", A.float().contiguous().numpy())
            writer.add_tensor(f"{name}.lora_b", B.float().contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def read_gguf_lora(path: str | Path, model_name_or_path: str | Path, modules: list[str]) -> dict[str, Tensor]:
    """The tensors of a GGUF LoRA file by PEFT's names, in the model's order of rows, alpha / r inside lora_B.

    Args:
        path: the file.
        model_name_or_path: the base.
        modules: the modules that it adapts.
    """
    shape = layout(model_name_or_path, modules)
    from gguf import GGUFReader, Keys

    reader = GGUFReader(path)
    alpha = float(reader.fields[Keys.Adapter.LORA_ALPHA].contents())
    stored = {t.name: torch.from_numpy(t.data.copy()) for t in reader.tensors}
    tensors: dict[str, Tensor] = {}
    for module, name in shape.names.items():
        A, B = stored[f"{name}.lora_a"], stored[f"{name}.lora_b"]  # (r, in), (out, r)
        tensors[f"{INSIDE}{module}.lora_A.weight"] = A
        tensors[f"{INSIDE}{module}.lora_B.weight"] = shape.rows_back(module, B) * (alpha / A.shape[0])
    return tensors

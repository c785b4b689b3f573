"""The linear weights of a GGUF file, dequantised one at a time, named and laid out as transformers does when it loads.

Names, and the permutation of Llama's q and k rows, are transformers' own: its name map and its tensor processors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from milora.errors import MiloraError
from milora.models.targets import select
from milora.models.weights import LinearWeight, from_tensors, linear_modules, output_head


@dataclass(frozen=True)
class GGUFTensor:
    """A tensor of a GGUF file.

    Attributes:
        file, key: where it lies, and its name there.
        shape: of the values after loading.
        architecture, config: what the file says of the model; they decide how its tensors are laid out.
    """

    file: Path
    key: str
    shape: tuple[int, ...]
    architecture: str
    config: dict[str, Any]

    dtype = "F32"  # whatever the file holds, it is dequantised to float32

    def read(self) -> Tensor:
        """The dequantised values."""
        from gguf import dequantize

        tensor = _tensors(self.file)[self.key]
        values = _processor(self.architecture, self.config).process(
            weights=dequantize(tensor.data, tensor.tensor_type), name=self.key, tensor_key_mapping={},
            parsed_parameters={"tensors": {}},
        ).weights  # fmt: skip
        return torch.from_numpy(np.copy(values))


def gguf_linear_weights(file: Path, targets: str | Sequence[str]) -> list[LinearWeight]:
    """The linear weights of a GGUF file.

    Raises:
        MiloraError: the package gguf is missing, the file is broken or of an architecture that cannot be read tensor by
            tensor, nothing matches.
    """
    if find_spec("gguf") is None:
        raise MiloraError("gguf_file: the package gguf is not installed; pip install 'milora[demo]'")
    architecture, config, model = _model(file)
    from transformers.modeling_gguf_pytorch_utils import get_gguf_hf_weights_map

    try:
        names = get_gguf_hf_weights_map(model, _processor(architecture, config))
    except NotImplementedError as error:
        raise MiloraError(f"gguf_file: {file}: {str(error).splitlines()[0]}") from error
    shapes = {name: tuple(parameter.shape) for name, parameter in model.state_dict().items()}
    tensors = {
        names[key]: GGUFTensor(file, key, shapes[names[key]], architecture, config)
        for key in _tensors(file)
        if names.get(key) in shapes
    }
    modules = linear_modules(model)
    chosen = select(targets, list(modules), output_head(model))
    return from_tensors(model, {n: modules[n] for n in chosen}, tensors)


def _model(file: Path) -> tuple[str, dict[str, Any], Any]:
    """The architecture's name, the file's configuration, and the model on the meta device."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.integrations.gguf.utils import is_gguf_arch_supported
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint, read_field

    try:
        architecture = str(read_field(_reader(file), "general.architecture")[0])
        if is_gguf_arch_supported(architecture):
            # transformers loads these by conversions that join and cut tensors.
            raise MiloraError(
                f"gguf_file: {file} holds a {architecture} model, which is not read tensor by tensor;"
                " load it with transformers and save it as safetensors first"
            )
        config = load_gguf_checkpoint(str(file))["config"]
        settings = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
        with torch.device("meta"):
            return architecture, config, AutoModelForCausalLM.from_config(settings)
    except MiloraError:
        raise
    except (ValueError, OSError, IndexError, KeyError, ImportError) as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise MiloraError(f"gguf_file: {file} cannot be read as a language model ({line})") from error


def _processor(architecture: str, config: dict[str, Any]) -> Any:
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

    return TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=config)


# Parsing a vocabulary takes a second; the file's tensors are mapped, not read.
@lru_cache(maxsize=1)
def _reader(file: Path) -> Any:
    from gguf import GGUFReader

    return GGUFReader(file)


@lru_cache(maxsize=1)
def _tensors(file: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in _reader(file).tensors}

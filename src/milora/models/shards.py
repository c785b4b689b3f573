"""A checkpoint written shard by shard: no model is built, and no more than one shard is in memory."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import split_state_dict_into_shards_factory
from safetensors.torch import save_file
from torch import Tensor

from milora.errors import MiloraError
from milora.models.weights import SafeTensor

MAX_SHARD_SIZE = "5GB"
# What a model's folder holds beside its weights and is not about them; licences go with the weights.
_COPIED = re.compile(
    r"config\.json|generation_config\.json|.*(tokenizer|processor|vocab|merges|tokens|chat_template).*"
    r"\.(json|txt|jinja|model|tiktoken)|.*\.py|LICEN[CS]E.*|NOTICE.*"
)


class Shards:
    """How the tensors of a checkpoint are divided over files.

    Args:
        tensors: every tensor by its name; shapes and dtypes are those that are written.
        max_shard_size: of one file, e.g. "5GB".

    Raises:
        MiloraError: a size that is none.
    """

    def __init__(self, tensors: Mapping[str, SafeTensor], max_shard_size: str = MAX_SHARD_SIZE) -> None:
        try:
            self._split = split_state_dict_into_shards_factory(
                dict(tensors), get_storage_size=_size, filename_pattern="model{suffix}.safetensors",
                max_shard_size=max_shard_size,
            )  # fmt: skip
        except ValueError as error:
            raise MiloraError(f"max_shard_size: {str(error).splitlines()[0]}") from error

    def write(self, folder: Path, value: Callable[[str], Tensor]) -> None:
        """Write the files, and their index where there are several; `value` gives a tensor by its name."""
        for name, keys in self._split.filename_to_tensors.items():
            values = {key: value(key) for key in keys}
            save_file(values, folder / name, metadata={"format": "pt"})
            del values
        if self._split.is_sharded:
            index = {"metadata": self._split.metadata, "weight_map": self._split.tensor_to_filename}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True))


def copy_beside(source: Path, folder: Path, leave: Iterable[str] = ()) -> None:
    """Copy what a model's folder holds beside its weights: configuration, tokenizer, code, licence."""
    for other in sorted(source.iterdir()):
        if _COPIED.fullmatch(other.name) and other.is_file() and other.name not in set(leave):
            shutil.copyfile(other, folder / other.name)


def _size(stored: Any) -> int:
    bits = re.search(r"\d+", stored.dtype)
    count = 1
    for length in stored.shape:
        count *= length
    return count * (int(bits[0]) // 8 if bits else 1)

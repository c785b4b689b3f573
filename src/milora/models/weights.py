"""The linear weights of a checkpoint, each read by itself: no model is built, and no tensor is read before its turn.

Which weights there are is known from the architecture: the model is made on the meta device, and what the checkpoint
calls its tensors is put in the model's names as transformers does when it loads. Where there is no architecture to
make (no config, or code of the model's own that was not allowed to run), the names decide: matrices called `*.weight`
that are no embedding, norm or output head.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from safetensors import safe_open
from torch import Tensor, nn

from milora.errors import MiloraError
from milora.models.checkpoint import check_checkpoint, weight_files
from milora.models.hub import locate
from milora.models.targets import ALL_LINEAR, select

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# The last part of the name of a matrix that is not a linear layer's, or is the output head's.
_NOT_LINEAR = re.compile(r"(embed|wte$|wpe$|norm|^ln(_|\d|$)|_ln$|head$|^score$|^classifier$)")


class Stored(Protocol):
    """One tensor in a file: its shape and the name of its type are known, its values are read on demand."""

    @property
    def file(self) -> Path: ...
    @property
    def key(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> str: ...

    def read(self) -> Tensor:
        """The values, as they are stored."""
        ...


@dataclass(frozen=True)
class SafeTensor:
    """A tensor of a safetensors file. Reading it opens the file, so that nothing stays mapped between two of them."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str

    def read(self) -> Tensor:
        """The values, as they are stored."""
        with safe_open(self.file, framework="pt") as handle:
            return handle.get_tensor(self.key)


@dataclass(frozen=True)
class LinearWeight:
    """The weight of one linear module, still on the disk.

    Attributes:
        name: the module's name in the model, which is also what an adapter calls it.
        stored: where it lies.
        transposed: whether it is stored (in, out), as transformers' Conv1D does.
    """

    name: str
    stored: Stored
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        first, second = self.stored.shape
        return (second, first) if self.transposed else (first, second)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of its values when they are read."""
        return DTYPES[self.stored.dtype]

    def load(self) -> Tensor:  # (out, in)
        """Read this one tensor; a Conv1D's as a view, the same that an adapter decomposes."""
        weight = self.stored.read()
        return weight.T if self.transposed else weight


@dataclass(frozen=True)
class LinearWeights:
    """The linear weights that were asked for, in the model's order.

    Attributes:
        weights: one for each; a weight that several modules share stands once.
        found_by: "architecture", or "names" where the model could not be made.
        note: why the names had to do; empty otherwise.
    """

    weights: list[LinearWeight]
    found_by: Literal["architecture", "names"]
    note: str = ""


def linear_weights(
    model_name_or_path: str | Path,
    targets: str | Sequence[str] = ALL_LINEAR,
    *,
    gguf_file: str | None = None,
    trust_remote_code: bool = False,
    fetch: bool = True,
) -> LinearWeights:
    """Find the linear weights of a checkpoint.

    Args:
        model_name_or_path: a local folder, a hub name, or a .gguf file.
        targets: "all-linear" (all but the output head, as in PEFT), a list of names, or an expression.
        gguf_file: the GGUF file inside the folder.
        trust_remote_code: run the model's own code to learn its architecture.
        fetch: fetch a hub's files that are not here.

    Raises:
        MiloraError: no such folder, no or broken weights, nothing matches, a tensor that is missing, quantised or
            packed; see also `milora.models.gguf_weights`.
    """
    folder, gguf_file = locate(model_name_or_path, gguf_file, trust_remote_code, fetch)
    if gguf_file is not None:
        from milora.models.gguf_weights import gguf_linear_weights

        return LinearWeights(_once(gguf_linear_weights(folder / gguf_file, targets)), "architecture")
    check_checkpoint(folder, config=False)
    tensors = stored_tensors(folder)
    model, note = _architecture(folder, trust_remote_code)
    if model is None:
        found = _by_names(tensors, targets)
        return LinearWeights(_once([_checked(w) for w in found]), "names", note)
    modules = linear_modules(model)
    names = select(targets, list(modules), output_head(model))
    return LinearWeights(
        _once([_checked(w) for w in from_tensors(model, {n: modules[n] for n in names}, renamed(model, tensors))]),
        "architecture",
    )


def stored_tensors(folder: Path) -> dict[str, SafeTensor]:
    """Every tensor of a folder's safetensors files by its name there; only the files' headers are read."""
    found: dict[str, SafeTensor] = {}
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as handle:
            for key in handle.keys():  # noqa: SIM118  (safe_open is no mapping)
                part = handle.get_slice(key)
                found.setdefault(key, SafeTensor(file, key, tuple(part.get_shape()), part.get_dtype()))
    return found


def linear_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that PEFT's `all-linear` looks at: nn.Linear and transformers' Conv1D, by name."""
    from transformers.pytorch_utils import Conv1D

    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)}


def output_head(model: Any) -> str | None:
    """The name of the output head, if the model has one."""
    head = model.get_output_embeddings()
    return None if head is None else next(n for n, m in model.named_modules() if m is head)


def from_tensors(
    model: nn.Module, modules: Mapping[str, nn.Module], tensors: Mapping[str, Stored]
) -> list[LinearWeight]:
    """The weights of linear modules out of tensors that have the model's names.

    Raises:
        MiloraError: a module's tensor is missing or has another shape.
    """
    # Weights that several modules share are stored under one of their names.
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    found, missing = [], []
    for name, module in modules.items():
        weight: Any = module.weight
        stored = next((tensors[n] for n in [f"{name}.weight", *names[id(weight)]] if n in tensors), None)
        if stored is None:
            missing.append(name)
            continue
        _check_shape(name, stored, tuple(weight.shape))
        found.append(LinearWeight(name, stored, transposed=not isinstance(module, nn.Linear)))
    if missing:
        raise _missing(missing[0], len(missing), tensors)
    return found


def _check_shape(name: str, stored: Stored, wanted: tuple[int, ...]) -> None:
    # A packed tensor has a shape of its own; its dtype is the better thing to name.
    if stored.dtype in DTYPES and tuple(stored.shape) != wanted:
        raise MiloraError(f"weights: {stored.key} in {stored.file} is {stored.shape}, the model's {name} is {wanted}")


def _missing(name: str, count: int, tensors: Mapping[str, Stored]) -> MiloraError:
    for key, stored in tensors.items():
        if key.startswith(f"{name}.") and stored.dtype not in DTYPES:
            return _refusal(stored)
    more = f" and for {count - 1} more" if count > 1 else ""
    return MiloraError(f"weights: the checkpoint holds no tensor for {name}{more}, though the model has them")


def _refusal(stored: Stored) -> MiloraError:
    return MiloraError(
        f"weights: {stored.key} is stored as {stored.dtype}, quantised or packed, allowed {', '.join(DTYPES)};"
        " load and save the model in one of them first"
    )


def _checked(weight: LinearWeight) -> LinearWeight:
    if weight.stored.dtype not in DTYPES:
        raise _refusal(weight.stored)
    return weight


def _once(weights: list[LinearWeight]) -> list[LinearWeight]:
    once: dict[tuple[Path, str], LinearWeight] = {}
    for weight in weights:
        once.setdefault((weight.stored.file, weight.stored.key), weight)
    return list(once.values())


def _by_names(tensors: Mapping[str, SafeTensor], targets: str | Sequence[str]) -> list[LinearWeight]:
    found = {
        key.removesuffix(".weight"): stored
        for key, stored in tensors.items()
        if key.endswith(".weight") and len(stored.shape) == 2 and not _NOT_LINEAR.search(key.split(".")[-2].lower())
    }
    packed = next((s for k, s in tensors.items() if k.endswith((".qweight", ".weight_packed"))), None)
    if not found:
        raise _refusal(packed) if packed else MiloraError("weights: no tensor is called like a linear layer's weight")
    return [LinearWeight(name, found[name]) for name in select(targets, list(found))]


def renamed(model: Any, tensors: Mapping[str, SafeTensor]) -> dict[str, Stored]:
    """The tensors by the names that transformers gives them when it loads this model.

    A tensor that loading would cut up or join with others keeps its own name: it is no weight of the model.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    wanted, prefix = model.state_dict(), model.base_model_prefix
    found: dict[str, Stored] = {}
    for key, stored in tensors.items():
        name, converted = rename_source_key(key, renamings, converters, prefix, wanted)
        if name not in wanted and key in wanted:
            name, converted = rename_source_key(key, [], [], prefix, wanted)
        found[key if converted else name] = stored
    return found


def _architecture(folder: Path, trust_remote_code: bool) -> tuple[Any, str]:
    """The model on the meta device, or None and the reason why there is none."""
    from milora.models.load import empty_model

    if not (folder / "config.json").is_file():
        return None, f"{folder} holds no config.json"
    try:
        return empty_model(folder, trust_remote_code=trust_remote_code), ""
    except (ValueError, ImportError, KeyError, AttributeError) as error:
        return None, str(error).strip().splitlines()[0]

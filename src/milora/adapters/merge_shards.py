"""A merged model written shard by shard: no model is built, and no more than one shard is in memory.

The base checkpoint's tensors are read one by one under their own names, and to those that the adapter changes its delta
is added in float32 and cast once: the values that `merge_adapter` writes. What a model joins, cuts or shares when it
loads is not one tensor of the checkpoint, and is refused before anything is written.

The deltas may go onto another model of the same shapes than the one that the adapter was trained on, as MiCA (arXiv
2604.01694) transfers what a base model has learnt to its instruct model:

    W = W_instruct + (W_tuned - W_base) = W_instruct + delta
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from milora.adapters.config import SpectralConfig
from milora.adapters.delta import AdapterFile
from milora.adapters.export import check_free
from milora.adapters.saved_config import CONFIG, read_config
from milora.errors import MiloraError
from milora.models.atomic import replacing
from milora.models.checkpoint import check_checkpoint
from milora.models.digest import Digest, weight_digest
from milora.models.fingerprint import fingerprint, precision
from milora.models.hub import locate
from milora.models.load import empty_model
from milora.models.shards import MAX_SHARD_SIZE, Shards, copy_beside
from milora.models.weights import DTYPES, SafeTensor, Stored, linear_modules, renamed, stored_tensors


class NotStreamable(MiloraError):
    """This base or adapter can only be merged as a whole model in memory."""


@dataclass
class _Plan:
    """What becomes of the checkpoint's tensors.

    Attributes:
        tensors: every tensor of the checkpoint by its name there.
        adapted: of those that a delta is added to: the module, and whether the tensor is stored (in, out).
        replaced: of those that the adapter holds whole: the name in its file.
    """

    tensors: dict[str, SafeTensor]
    adapted: dict[str, tuple[str, bool]] = field(default_factory=dict[str, tuple[str, bool]])
    replaced: dict[str, str] = field(default_factory=dict[str, str])


def merge_shards(
    adapter: str | Path,
    model_name_or_path: str | Path,
    output: str | Path,
    *,
    max_shard_size: str = MAX_SHARD_SIZE,
    overwrite: bool = False,
    force: bool = False,
    onto: str | Path | None = None,
) -> Path:
    """Write the base checkpoint with an adapter merged into it, shard by shard.

    Args:
        adapter: the folder of the saved adapter, of this package or a plain LoRA.
        model_name_or_path: the base: a folder of safetensors, or a hub name.
        output: the folder to write.
        max_shard_size: of one file of weights, e.g. "5GB"; the peak of memory is one shard and one delta.
        overwrite: replace the folder if it stands.
        force: merge also into a base with another fingerprint.
        onto: another model of the same shapes, which is written with the change in place of the base.

    Returns:
        `output`.

    Raises:
        NotStreamable: a base that is no folder of plain safetensors, an architecture that is not known, a weight that
            the checkpoint stores in pieces or together with others, an adapter that is not a sum on the weights.
        MiloraError: see `AdapterFile`; `output` exists; another base; an adapted weight is tied to another; NaN or Inf.
    """
    target = Path(output).expanduser()
    check_free(target, overwrite, adapter, model_name_or_path, onto)
    file = _adapter(adapter, model_name_or_path)
    if onto is not None:
        _check_transfer(file, model_name_or_path, force)
    folder = _folder(model_name_or_path if onto is None else onto)
    plan = _plan(file, folder)
    shards = Shards(plan.tensors, max_shard_size)
    digests: dict[str, Digest] = {}
    with replacing(target) as temporary:
        temporary.mkdir()
        shards.write(temporary, lambda key: _value(plan, file, key, digests))
        if onto is None:
            _check_base(file, plan, digests, force)
        copy_beside(folder, temporary)
    return target


def _folder(model_name_or_path: str | Path) -> Path:
    folder, gguf_file = locate(model_name_or_path)
    if gguf_file is not None:
        raise NotStreamable(f"{folder / gguf_file} is a GGUF file")
    return folder


def _check_transfer(file: AdapterFile, base: str | Path, force: bool) -> None:
    """What goes onto another model is a change alone, and that of this base."""
    if file.others:
        raise MiloraError(f"--onto: the adapter holds {file.others[0]} whole, allowed changes of linear layers alone")
    plan, digests = _plan(file, _folder(base)), {}
    for key in plan.adapted:
        _value(plan, file, key, digests)
    _check_base(file, plan, digests, force)


def _adapter(adapter: str | Path, base: str | Path) -> AdapterFile:
    folder = Path(adapter).expanduser()
    config = read_config(folder) if (folder / CONFIG).is_file() else None
    if isinstance(config, SpectralConfig) and config.magnitude:
        raise NotStreamable("the adapter has a magnitude, which is no sum on the weights")
    if config is not None and not isinstance(config, SpectralConfig):
        try:
            return AdapterFile(folder)
        except MiloraError as error:
            raise NotStreamable(str(error)) from error
    return AdapterFile(folder, base=base)


def _plan(file: AdapterFile, folder: Path) -> _Plan:
    check_checkpoint(folder)
    if "quantization_config" in json.loads((folder / "config.json").read_text(encoding="utf-8")):
        raise NotStreamable(f"{folder} is quantised")
    tensors = stored_tensors(folder)
    try:
        model = empty_model(folder)
    except (ValueError, ImportError, KeyError, AttributeError) as error:
        raise NotStreamable(f"{folder}: its architecture is not known ({str(error).splitlines()[0]})") from error
    by_name = renamed(model, tensors)
    plan, linear = _Plan(tensors), linear_modules(model)
    if file.fused:
        raise NotStreamable(f"{file.fused[0]} holds the weights of many experts")
    if file.embeddings:
        raise NotStreamable(f"{min(file.embeddings)} is an embedding")
    for module in file.modules:
        if module not in linear:
            raise MiloraError(f"merge: base {folder} has no linear layer {module}")
        transposed = not isinstance(linear[module], nn.Linear)
        stored = _stored(model, by_name, f"{module}.weight", folder)
        shape, wanted = (stored.shape[::-1] if transposed else stored.shape), file.delta(module).shape
        if tuple(shape) != wanted:
            raise MiloraError(f"merge: {module} is {tuple(shape)} (out, in) in {folder}, in the adapter {wanted}")
        plan.adapted[stored.key] = (module, transposed)
    for name, key in file.other().items():
        if name.removesuffix(".weight") in file.modules:
            continue  # PEFT saves the weight of an adapted output head too; it is the base's own
        stored = _stored(model, by_name, name, folder)
        if stored.shape != tuple(file.tensor(key).shape):
            raise MiloraError(
                f"merge: {name} is {stored.shape} in {folder}, {tuple(file.tensor(key).shape)} in the adapter"
            )
        plan.replaced[stored.key] = key
    return plan


def _stored(model: Any, by_name: dict[str, Stored], name: str, folder: Path) -> Stored:
    """The one tensor of the checkpoint that a parameter is read from, and nothing else is."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    shared = [n for n, p in parameters.items() if n != name and p is parameters.get(name)]
    if shared:
        first, second = name.removesuffix(".weight"), shared[0].removesuffix(".weight")
        raise MiloraError(
            f"merge: {first} shares its weight with {second}; save the base with tie_word_embeddings=False first,"
            " or export the adapter"
        )
    stored = by_name.get(name)
    if stored is None or stored.dtype not in DTYPES:
        how = "does not hold it as one tensor" if stored is None else f"holds it as {stored.dtype}"
        raise NotStreamable(f"{name}: {folder} {how}")
    return stored


def _value(plan: _Plan, file: AdapterFile, key: str, digests: dict[str, Digest]) -> Tensor:
    """What the merged checkpoint holds under one name of the base's."""
    stored = plan.tensors[key].read()
    if key in plan.replaced:
        value = file.tensor(plan.replaced[key]).to(stored.dtype)
    elif key in plan.adapted:
        module, transposed = plan.adapted[key]
        W = stored.T if transposed else stored  # (out, in)
        digests[module] = weight_digest(W)
        merged = file.delta(module).added_to(W)
        value = (merged.T if transposed else merged).contiguous()
    else:
        return stored
    if not bool(torch.isfinite(value).all()):
        raise MiloraError(f"merge: {key} would hold NaN or Inf, allowed finite weights")
    return value


def _check_base(file: AdapterFile, plan: _Plan, digests: dict[str, Digest], force: bool) -> None:
    """The weights that were read must be those that the adapter was made on."""
    config = file.config
    if force or not isinstance(config, SpectralConfig) or config.base_fingerprint is None:
        return
    here = precision(DTYPES[plan.tensors[key].dtype] for key in plan.adapted)
    if here != config.base_precision:
        warnings.warn(
            f"the adapter was made on a {config.base_precision} base, this one is {here}: not compared", stacklevel=2
        )
    elif (found := fingerprint(sorted(digests.items()))) != config.base_fingerprint:
        raise MiloraError(
            f"adapter: it was made on a base with fingerprint {config.base_fingerprint}, this base has {found};"
            " --force merges it all the same"
        )

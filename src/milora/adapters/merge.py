"""Leave milora the other way: one whole model, the adapter added into its weights in float32 and cast once.

`merge` writes it shard by shard where the base's checkpoint allows it (`milora.adapters.merge_shards`), else in memory.
"""

from __future__ import annotations

from pathlib import Path

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from milora.adapters.attach import load_adapter
from milora.adapters.merge_shards import MAX_SHARD_SIZE, NotStreamable, merge_shards
from milora.errors import MiloraError
from milora.models.atomic import replacing
from milora.models.load import load_model, load_tokenizer


def merge(
    adapter: str | Path,
    model_name_or_path: str | Path,
    output: str | Path,
    *,
    max_shard_size: str = MAX_SHARD_SIZE,
    overwrite: bool = False,
    force: bool = False,
) -> tuple[Path, str]:
    """Write the merged model: shard by shard, or in memory where that is the only way.

    Returns:
        `output`, and why it was made in memory, or nothing.

    Raises:
        MiloraError: see `merge_shards` and `merge_adapter`.
    """
    try:
        written = merge_shards(
            adapter, model_name_or_path, output, max_shard_size=max_shard_size, overwrite=overwrite, force=force
        )
        return written, ""
    except NotStreamable as reason:
        return merge_adapter(adapter, model_name_or_path, output, overwrite=overwrite, force=force), str(reason)


def merge_adapter(
    adapter: str | Path,
    model_name_or_path: str | Path,
    output: str | Path,
    *,
    dtype: str = "auto",
    overwrite: bool = False,
    force: bool = False,
) -> Path:
    """Write the base model with an adapter merged into it, and its tokenizer.

    Args:
        adapter: the folder of the saved adapter.
        model_name_or_path: the base model.
        output: the folder to write.
        dtype: of the merged model; "auto" keeps the checkpoint's.
        overwrite: replace the folder if it stands.
        force: merge also into a base with another fingerprint.

    Returns:
        `output`.

    Raises:
        MiloraError: see `load_model` and `load_adapter`; `output` exists; an adapted weight is tied to another.
    """
    target = Path(output).expanduser()
    if target.exists() and not overwrite:
        raise MiloraError(f"output: {target} exists, allowed a new folder, or --overwrite")
    model = load_adapter(load_model(model_name_or_path, dtype=dtype), adapter, force=force)
    _check_not_tied(model)
    merged = model.merge_and_unload(safe_merge=True)
    with replacing(target) as temporary:
        merged.save_pretrained(temporary)
        load_tokenizer(model_name_or_path).save_pretrained(temporary)
    return target


def _check_not_tied(model: nn.Module) -> None:
    """A weight that two modules share cannot take an adapter of one of them."""
    owners: dict[int, str] = {}
    adapted = {n for n, m in model.named_modules() if isinstance(m, BaseTunerLayer)}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        module = name.removesuffix(".weight").removesuffix(".base_layer")
        other = owners.setdefault(parameter.data_ptr(), module)
        if other != module and adapted & {module, other}:
            first, second = sorted((module, other), key=lambda m: m not in adapted)
            inside = "base_model.model."
            raise MiloraError(
                f"merge: {first.removeprefix(inside)} shares its weight with {second.removeprefix(inside)};"
                " save the base with tie_word_embeddings=False first, or export the adapter"
            )

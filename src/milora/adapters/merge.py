"""Leave milora the other way: one whole model, the adapter added into its weights in float32 and cast once.

`merge` writes it shard by shard where the base's checkpoint allows it (`milora.adapters.merge_shards`), else in memory.
"""

from __future__ import annotations

from pathlib import Path

from peft import PromptLearningConfig

from milora.adapters.attach import load_adapter
from milora.adapters.export import check_free
from milora.adapters.merge_shards import MAX_SHARD_SIZE, NotStreamable, merge_shards
from milora.adapters.tied import check_not_tied
from milora.errors import MiloraError
from milora.models.atomic import replacing
from milora.models.load import load_model, load_processor, load_tokenizer


def merge(
    adapter: str | Path,
    model_name_or_path: str | Path,
    output: str | Path,
    *,
    max_shard_size: str = MAX_SHARD_SIZE,
    overwrite: bool = False,
    force: bool = False,
    onto: str | Path | None = None,
) -> tuple[Path, str]:
    """Write the merged model: shard by shard, or in memory where that is the only way.

    With `onto` the change that was trained on the base is added to that model's weights, shard by shard alone.

    Returns:
        `output`, and why it was made in memory, or nothing.

    Raises:
        MiloraError: see `merge_shards` and `merge_adapter`.
    """
    try:
        written = merge_shards(
            adapter, model_name_or_path, output, max_shard_size=max_shard_size, overwrite=overwrite, force=force,
            onto=onto,
        )  # fmt: skip
        return written, ""
    except NotStreamable as reason:
        if onto is not None:
            raise MiloraError(f"--onto: {reason}; allowed changes that are a sum on the weights") from reason
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
    check_free(target, overwrite, adapter, model_name_or_path)
    model = load_adapter(load_model(model_name_or_path, dtype=dtype), adapter, force=force)
    for config in model.peft_config.values():
        if isinstance(config, PromptLearningConfig):
            kind = getattr(config.peft_type, "value", config.peft_type)
            raise MiloraError(f"merge: got {kind}, which changes no weight; allowed adapters that do")
    check_not_tied(model)
    merged = model.merge_and_unload(safe_merge=True)
    with replacing(target) as temporary:
        merged.save_pretrained(temporary)
        (load_processor(model_name_or_path) or load_tokenizer(model_name_or_path)).save_pretrained(temporary)
    return target

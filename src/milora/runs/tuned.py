"""A run, an adapter or a model by its path: built, with its tokenizer and with a way to its base model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from milora.adapters import load_adapter
from milora.adapters.saved_config import read_config
from milora.errors import MiloraError
from milora.models.load import load_model, load_processor, load_tokenizer
from milora.models.quantised import QUANTIZATIONS
from milora.runs.folder import RunFolder


@dataclass
class Tuned:
    """What a path stands for.

    Attributes:
        model: the tuned model; with an adapter, its base is this model with the adapters disabled.
        tokenizer: of both.
        processor: of both, where they take pictures; else None.
        base_model: the base of a full fine-tune, which has no adapter to disable; else None.
        run: the run folder it comes from, if any.
        has_base: whether there is a base to compare with.
    """

    model: Any
    tokenizer: Any
    base_model: Any = None
    processor: Any = None
    run: RunFolder | None = None
    has_base: bool = True


def load_tuned(
    path: str | Path,
    *,
    model_name_or_path: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    force: bool = False,
) -> Tuned:
    """Build what lies at ``path``.

    Args:
        path: a run folder, an adapter's folder, or a model (a folder or a hub name).
        model_name_or_path: the base of an adapter; by default the one the run or the adapter names.
        dtype: of the base weights; by default the run's, else the checkpoint's.
        device: where to put the model; by default where ``load_model`` puts it.
        force: load an adapter although its base has another fingerprint.

    Raises:
        MiloraError: nothing usable lies there.
    """
    run = RunFolder(path)
    if run.holds_run:
        return _of_run(run, model_name_or_path, dtype, device, force)
    if (run.path / "adapter_config.json").is_file():
        base = model_name_or_path or read_config(run.path).base_model_name_or_path
        if not base:
            raise MiloraError(f"{path}: the adapter names no base model; pass --model_name_or_path")
        quantization, _ = quantised_base(run.path)
        model = load_model(base, dtype=dtype or "auto", device=device, quantization=quantization)
        tuned = load_adapter(model, run.path, force=force)
        return Tuned(tuned, load_tokenizer(base), processor=load_processor(base))
    model = load_model(str(path), dtype=dtype or "auto", device=device)
    return Tuned(model, load_tokenizer(str(path)), processor=load_processor(str(path)), has_base=False)


def quantised_base(path: str | Path) -> tuple[str | None, str]:
    """What the base of a run or of an adapter's folder is quantised in while it is loaded, and its dtype before that.

    Returns:
        One of `milora.models.quantised.QUANTIZATIONS`, or None; and a dtype for `load_model`. Of an adapter that is
        not in its run, the quantisation is known where it is one of this package's.
    """
    run = RunFolder(path)
    if run.holds_run:
        recipe = run.recipe()
        return recipe.base_quantization, recipe.base_dtype
    config = read_config(run.path) if (run.path / "adapter_config.json").is_file() else None
    precision = getattr(config, "base_precision", None)
    return (precision if precision in QUANTIZATIONS else None), "auto"


def _of_run(run: RunFolder, base: str | None, dtype: str | None, device: str | None, force: bool) -> Tuned:
    recipe = run.recipe()
    base = base or recipe.model_name_or_path
    settings: dict[str, Any] = {
        "dtype": dtype or recipe.base_dtype,
        "device": device or recipe.device,
        "trust_remote_code": recipe.trust_remote_code,
    }
    source = {"gguf_file": recipe.gguf_file, "trust_remote_code": recipe.trust_remote_code}
    tokenizer = load_tokenizer(base, **source)
    processor = load_processor(base, trust_remote_code=recipe.trust_remote_code)
    model = load_model(base, gguf_file=recipe.gguf_file, quantization=recipe.base_quantization, **settings)
    if recipe.method == "full":
        return Tuned(load_model(str(run.model), **settings), tokenizer, model, processor, run)
    folder = run.own_adapter()
    return Tuned(load_adapter(model, folder, force=force), tokenizer, processor=processor, run=run)

"""Load a base model and its tokenizer from a local folder, a GGUF file or a hub name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from milora.errors import MiloraError
from milora.models.checkpoint import check_checkpoint, is_local
from milora.models.pictures import takes_pictures
from milora.models.quantised import dense_parameters, prepare_quantised, quantization_config
from milora.models.spread import stays_on_cpu, values_elsewhere

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(
    model_name_or_path: str | Path,
    *,
    dtype: str = "auto",
    device: str | None = None,
    trust_remote_code: bool = False,
    gguf_file: str | None = None,
    quantization: str | None = None,
) -> PreTrainedModel:
    """Load a causal language model, or an image-text model where that is what it is (`takes_pictures`), checked.

    Args:
        model_name_or_path: a local folder of safetensors, or a hub name.
        dtype: "auto" (the checkpoint's own), "float32", "bfloat16" or "float16".
        device: e.g. "cuda"; None takes a GPU where there is one. A model that is to be spread over several processes
            stays on the CPU until then.
        trust_remote_code: run the model's own code; only when asked for.
        gguf_file: the file inside the folder to dequantise, for a GGUF checkpoint.
        quantization: quantise while loading, in one of `milora.models.quantised.QUANTIZATIONS`.

    Raises:
        MiloraError: see `check_checkpoint`; also NaN or Inf in a weight, with its name; the quantisation's package is
            not installed, or the checkpoint is already quantised.
    """
    if dtype != "auto" and dtype not in _DTYPES:
        raise MiloraError(f"dtype: got {dtype!r}, allowed auto, {', '.join(_DTYPES)}")
    _check_source(model_name_or_path, gguf_file)
    device = "cpu" if stays_on_cpu() else usable_device(device)
    arguments: dict[str, Any] = {"dtype": _DTYPES.get(dtype, "auto"), "trust_remote_code": trust_remote_code}
    if gguf_file:
        arguments["gguf_file"] = gguf_file
    else:
        arguments["use_safetensors"] = True
    arguments |= _quantised(model_name_or_path, quantization, dtype, device, trust_remote_code)
    model = _from_pretrained(_model_class(model_name_or_path), model_name_or_path, arguments)
    if gguf_file:
        _unmark(model)
    if "device_map" not in arguments:
        model = model.to(device)
    prepare_quantised(model)
    if not values_elsewhere():
        check_finite(model)
    return model


def _unmark(model: Any) -> None:
    """Take off what transformers leaves on a model out of a GGUF file: its weights are dense, and train."""
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        if name in vars(model):
            delattr(model, name)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def stored_quantization(model_name_or_path: str | Path) -> str | None:
    """What a checkpoint says that its weights are quantised with, e.g. "bitsandbytes"; None where they are not."""
    settings = _config_dict(model_name_or_path).get("quantization_config")
    return str(settings.get("quant_method") or "a method that it does not name") if settings else None


def load_tokenizer(
    model_name_or_path: str | Path, *, trust_remote_code: bool = False, gguf_file: str | None = None
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model; one without a padding token pads with its end-of-sequence token."""
    _check_source(model_name_or_path, gguf_file, weights=False)
    arguments: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if gguf_file:
        arguments["gguf_file"] = gguf_file
    tokenizer = _from_pretrained(AutoTokenizer, model_name_or_path, arguments)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_processor(model_name_or_path: str | Path, *, trust_remote_code: bool = False) -> Any:
    """The processor of an image-text model: its tokenizer (as `load_tokenizer` gives it) and what makes its pictures
    ready; None for any other model.
    """
    if not takes_pictures(_config_dict(model_name_or_path)):
        return None
    processor = _from_pretrained(AutoProcessor, model_name_or_path, {"trust_remote_code": trust_remote_code})
    if not hasattr(processor, "image_processor"):
        raise MiloraError(f"model {_source(model_name_or_path)}: has pictures and no processor for them")
    processor.tokenizer = load_tokenizer(model_name_or_path, trust_remote_code=trust_remote_code)
    return processor


def load_config(
    model_name_or_path: str | Path, *, trust_remote_code: bool = False, gguf_file: str | None = None
) -> PreTrainedConfig:
    """The configuration of a model."""
    _check_source(model_name_or_path, gguf_file, weights=False)
    arguments: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if gguf_file:
        arguments["gguf_file"] = gguf_file
    return _from_pretrained(AutoConfig, model_name_or_path, arguments)


def empty_model(model_name_or_path: str | Path, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model's architecture on the meta device: shapes and names without weights, from config.json alone."""
    config = load_config(model_name_or_path, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        auto_class: Any = AutoModelForImageTextToText if takes_pictures(config) else AutoModelForCausalLM
        return auto_class.from_config(config, trust_remote_code=trust_remote_code)


def check_finite(model: torch.nn.Module) -> None:
    """Raise a MiloraError that names the first parameter that holds NaN or Inf."""
    for name, weight in dense_parameters(model):
        if weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
            raise MiloraError(f"weights: {name} holds NaN or Inf, allowed finite numbers")


def usable_device(device: str | None) -> str:
    """A device that is there; None takes a GPU where there is one.

    Raises:
        MiloraError: the device is not there.
    """
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise MiloraError(f"device: got {device!r}, which is not there ({str(error).splitlines()[0]})") from error
    return device


def _check_source(model_name_or_path: str | Path, gguf_file: str | None, weights: bool = True) -> None:
    if not is_local(model_name_or_path):
        return
    folder = Path(model_name_or_path).expanduser()
    if gguf_file:
        if not (folder / gguf_file).is_file():
            raise MiloraError(f"gguf_file: {folder / gguf_file} does not exist")
    elif weights:
        check_checkpoint(folder)
    elif not folder.is_dir():
        raise MiloraError(f"model folder: got {folder}, which does not exist or is no folder")
    elif (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise MiloraError(f"model folder: {folder} holds an adapter and no config.json, allowed a model")


def _source(model_name_or_path: str | Path) -> str:
    return str(Path(model_name_or_path).expanduser()) if is_local(model_name_or_path) else str(model_name_or_path)


def _from_pretrained(auto_class: Any, model_name_or_path: str | Path, arguments: dict[str, Any]) -> Any:
    source = _source(model_name_or_path)
    try:
        return auto_class.from_pretrained(source, **arguments)
    except (OSError, ValueError, ImportError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise MiloraError(f"model {source}: {first_line}") from error


def _config_dict(model_name_or_path: str | Path) -> dict[str, Any]:
    """What a model's config.json holds; nothing where it cannot be read, which `from_pretrained` says better."""
    try:
        return PreTrainedConfig.get_config_dict(_source(model_name_or_path))[0]
    except (OSError, ValueError):
        return {}


def _model_class(model_name_or_path: str | Path) -> Any:
    pictures = takes_pictures(_config_dict(model_name_or_path))
    return AutoModelForImageTextToText if pictures else AutoModelForCausalLM


def _quantised(
    model_name_or_path: str | Path, quantization: str | None, dtype: str, device: str, trust_remote_code: bool
) -> dict[str, Any]:
    """What `from_pretrained` is told of a quantised model; nothing for any other."""
    source = _source(model_name_or_path)
    already = stored_quantization(model_name_or_path)
    if already and quantization is not None:
        raise MiloraError(
            f"quantization: got {quantization}, but model {source} is already quantised ({already}); allowed null"
        )
    # accelerate wants to find a quantised model on a numbered device.
    placed = {"device_map": {"": torch.cuda.current_device() if device == "cuda" else device}}
    if quantization is None:
        return placed if already else {}
    modules = empty_model(source, trust_remote_code=trust_remote_code).modules() if "int4" in quantization else ()
    widths = [m.in_features for m in modules if isinstance(m, torch.nn.Linear)]
    compute_dtype = _DTYPES.get(dtype, torch.bfloat16)
    return {**placed, "quantization_config": quantization_config(quantization, compute_dtype, widths)}

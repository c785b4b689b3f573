"""Load a base model and its tokenizer from a local folder, a GGUF file or a hub name."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from milora.errors import MiloraError
from milora.models.checkpoint import check_checkpoint, is_local

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(
    model_name_or_path: str | Path,
    *,
    dtype: str = "auto",
    device: str | None = None,
    trust_remote_code: bool = False,
    gguf_file: str | None = None,
    load_in_4bit: bool = False,
    load_in_8bit: bool = False,
) -> PreTrainedModel:
    """Load a causal language model, checked.

    Args:
        model_name_or_path: a local folder of safetensors, or a hub name.
        dtype: "auto" (the checkpoint's own), "float32", "bfloat16" or "float16".
        device: e.g. "cuda"; None takes a GPU where there is one.
        trust_remote_code: run the model's own code; only when asked for.
        gguf_file: the file inside the folder to dequantise, for a GGUF checkpoint.
        load_in_4bit, load_in_8bit: quantise with bitsandbytes while loading.

    Raises:
        MiloraError: see `check_checkpoint`; also NaN or Inf in a weight, with its name.
    """
    if dtype != "auto" and dtype not in _DTYPES:
        raise MiloraError(f"dtype: got {dtype!r}, allowed auto, {', '.join(_DTYPES)}")
    _check_source(model_name_or_path, gguf_file)
    device = usable_device(device)
    arguments: dict[str, Any] = {"dtype": _DTYPES.get(dtype, "auto"), "trust_remote_code": trust_remote_code}
    if gguf_file:
        arguments["gguf_file"] = gguf_file
    else:
        arguments["use_safetensors"] = True
    if load_in_4bit or load_in_8bit:
        arguments["quantization_config"] = _bitsandbytes(load_in_4bit, load_in_8bit, dtype)
        arguments["device_map"] = {"": device}
    model = _from_pretrained(AutoModelForCausalLM, model_name_or_path, arguments)
    if "device_map" not in arguments:
        model = model.to(device)
    check_finite(model)
    return model


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


def empty_model(model_name_or_path: str | Path, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model's architecture on the meta device: shapes and names without weights, from config.json alone."""
    _check_source(model_name_or_path, None, weights=False)
    config = _from_pretrained(AutoConfig, model_name_or_path, {"trust_remote_code": trust_remote_code})
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)


def check_finite(model: torch.nn.Module) -> None:
    """Raise a MiloraError that names the first parameter that holds NaN or Inf."""
    for name, weight in model.named_parameters():
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


def _from_pretrained(auto_class: Any, model_name_or_path: str | Path, arguments: dict[str, Any]) -> Any:
    source = str(Path(model_name_or_path).expanduser()) if is_local(model_name_or_path) else str(model_name_or_path)
    try:
        return auto_class.from_pretrained(source, **arguments)
    except (OSError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise MiloraError(f"model {source}: {first_line}") from error


def _bitsandbytes(load_in_4bit: bool, load_in_8bit: bool, dtype: str) -> BitsAndBytesConfig:
    if load_in_4bit and load_in_8bit:
        raise MiloraError("load_in_4bit, load_in_8bit: got both, allowed one of them")
    if find_spec("bitsandbytes") is None:
        raise MiloraError("load_in_4bit, load_in_8bit: bitsandbytes is not installed; pip install 'milora[quant]'")
    return BitsAndBytesConfig(
        load_in_4bit=load_in_4bit,
        load_in_8bit=load_in_8bit,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=_DTYPES.get(dtype, torch.bfloat16),
    )

"""The configuration of a saved adapter: read from a file that anybody may have written, its types checked first.

PEFT makes a configuration from whatever the JSON holds, and trips over a wrong type much later and elsewhere.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from peft import PeftConfig
from pydantic import TypeAdapter, ValidationError

from milora.errors import MiloraError

CONFIG = "adapter_config.json"

_NAMES = list[str] | str | None
# What all of PEFT's configurations that have such a field agree on.
_TYPES: dict[str, Any] = {
    "peft_type": str,
    "task_type": str | None,
    "inference_mode": bool,
    "base_model_name_or_path": str | None,
    "revision": str | None,
    "peft_version": str | None,
    "auto_mapping": dict[str, Any] | None,
    "target_modules": _NAMES,
    "exclude_modules": _NAMES,
    "layers_to_transform": list[int] | int | None,
    "layers_pattern": _NAMES,
    "modules_to_save": list[str] | None,
    "rank_pattern": dict[str, Any] | None,
    "alpha_pattern": dict[str, float] | None,
    "bias": str,
    "r": int,
    "lora_alpha": float | None,
    "lora_dropout": float,
    "use_rslora": bool,
    "use_dora": bool,
    "fan_in_fan_out": bool,
    "init_lora_weights": bool | str | None,
    "base_fingerprint": str | None,
    "base_precision": str | None,
    "base_dtype": str | None,
    "base_values": str | None,
    "magnitude": bool,
    "components": str | list[int] | None,
    "components_seed": int,
    "pattern": str,
    "d": int,
    "entries": int | None,
    "svd_rank": int | None,
    "as_published": bool,
    "save_bases": bool | None,
    "drop_base": bool,
    "decompose_from": str,
    "target_parameters": list[str] | None,
    "embedding_modules": list[str] | None,
    "method": str,
}
_ADAPTERS = {name: TypeAdapter(kind) for name, kind in _TYPES.items()}
_SAID = {
    float | None: "a number",
    dict[str, float] | None: "numbers by name",
    _NAMES: "a list of names or an expression",
    list[str] | None: "a list of names",
}


def read_config(folder: Path) -> PeftConfig:
    """The configuration of a local adapter.

    Raises:
        MiloraError: no JSON object, a field of a wrong type, an expression that is none, a type of adapter that PEFT
            does not know, a value that its configuration refuses.
    """
    file = folder / CONFIG
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(fields, dict):
            raise TypeError(f"a {type(fields).__name__}, allowed an object")
        _check_types(fields, file)
        return PeftConfig.from_pretrained(str(folder))
    except MiloraError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError, OSError) as error:
        line = (str(error).strip() or "no reason given").splitlines()[0]
        raise MiloraError(f"adapter: {file} is no adapter configuration ({type(error).__name__}: {line})") from error


def _check_types(fields: dict[str, Any], file: Path) -> None:
    if "peft_type" not in fields:
        raise MiloraError(f"adapter: {file} is no adapter configuration: it has no peft_type")
    for name, value in fields.items():
        if name not in _ADAPTERS:
            continue
        try:
            _ADAPTERS[name].validate_python(value, strict=True)
        except ValidationError as error:
            said = _SAID.get(_TYPES[name], str(_TYPES[name]).removeprefix("<class '").removesuffix("'>"))
            raise MiloraError(f"adapter: {file}: {name}: got {_short(value)}, allowed {said}") from error
    patterns = [(n, list(fields.get(n) or {})) for n in ("rank_pattern", "alpha_pattern")]
    whole = [(n, [fields[n]]) for n in ("target_modules", "exclude_modules") if isinstance(fields.get(n), str)]
    for name, expressions in [*patterns, *whole]:
        for expression in expressions:
            try:
                re.compile(expression)
            except (re.error, OverflowError, RecursionError) as error:
                raise MiloraError(
                    f"adapter: {file}: {name}: {_short(expression)} is no expression ({error})"
                ) from error


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a list of thousands of lists
        return f"a {type(value).__name__}"
    return text if len(text) < 100 else text[:97] + "..."

"""From a file, a shipped name and flags to a checked recipe: flags over file over defaults.

A key under another tool's name (`cutoff_len`, `lr`) is refused, by decision, with the name it has here: a recipe that
was read as almost what was meant is worse than one that is not read.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from types import NoneType, SimpleNamespace, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from milora.errors import MiloraError
from milora.recipes import strict_yaml
from milora.recipes.checks import combined, nearest
from milora.recipes.schema import Recipe

# What other tools call a key; named in the error, never accepted.
OTHER_NAMES = {
    "base_model": "model_name_or_path",
    "model": "model_name_or_path",
    "torch_dtype": "dtype",
    "quantization_bit": "quantization",
    "quantize": "quantization",
    "use_4bit": "quantization",
    "r": "lora_r",
    "lora_rank": "lora_r",
    "alpha": "lora_alpha",
    "mm_projector_lr": "modules_to_save_learning_rate",
    "lora_target": "target_modules",
    "lora_target_modules": "target_modules",
    "adapter": "method",
    "init_lora_weights": "method",
    "use_dora": "method",
    "dataset_name": "dataset",
    "data_path": "dataset",
    "datasets": "dataset",
    "max_samples": "dataset_limit",
    "cutoff_len": "max_length",
    "max_seq_length": "max_length",
    "sequence_len": "max_length",
    "train_on_inputs": "loss_on",
    "mask_prompt": "loss_on",
    "completion_only_loss": "loss_on",
    "template": "prompt_template",
    "warmup_ratio": "warmup_steps",
    "num_epochs": "num_train_epochs",
    "lr": "learning_rate",
    "lr_scheduler": "lr_scheduler_type",
    "micro_batch_size": "per_device_train_batch_size",
    "batch_size": "per_device_train_batch_size",
    "optimizer": "optim",
    "tasks": "eval_tasks",
}

MODULE_KEYS = ("target_modules", "exclude_modules")
RANGES = ("finite_number", "greater_than", "greater_than_equal", "less_than", "less_than_equal")


def load_recipe(path_or_name: str | Path | None = None, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """A checked recipe.

    Args:
        path_or_name: a YAML file, the name of a shipped recipe, or None for the defaults alone.
        overrides: keys that go over the file's; a text for a key that is no text is read as YAML.

    Raises:
        MiloraError: no such file or recipe, broken YAML, and all unknown keys, wrong types, wrong values and
            wrong combinations together, parted by "; ".

    Examples:
        >>> load_recipe("llm-adapters-math", {"learning_rate": "1e-4"}).learning_rate
        0.0001
        >>> load_recipe("pissa-math").lora_alpha
        128.0
    """
    given = read(path_or_name) if path_or_name is not None else {}
    given |= {key: _read_flag(key, value) for key, value in (overrides or {}).items()}
    where = f"recipe {path_or_name}" if path_or_name is not None else "recipe"
    unknown = [_unknown(key) for key in given if key not in Recipe.model_fields]
    known = {key: value for key, value in given.items() if key in Recipe.model_fields}
    recipe, wrong = None, {}
    try:
        recipe = Recipe.model_validate(known)
    except ValidationError as error:
        wrong = _wrong_keys(error.errors(), known)
    defaults = {key: field.get_default(call_default_factory=True) for key, field in Recipe.model_fields.items()}
    values = SimpleNamespace(**{**defaults, **known})
    problems = [*unknown, *wrong.values(), *combined(values, set(wrong))]
    if problems or recipe is None:
        raise MiloraError(f"{where}: " + "; ".join(problems))
    return recipe


def read(path_or_name: str | Path) -> dict[str, Any]:
    """The keys in a recipe file or shipped recipe, as they are written.

    Raises:
        MiloraError: there is none, or it is not a YAML mapping.
    """
    path = _find(path_or_name)
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MiloraError(f"recipe {path_or_name}: cannot be read ({error})") from error
    data = strict_yaml.parse(content, f"recipe {path_or_name}")
    if not isinstance(data, dict):
        got = "nothing" if data is None else type(data).__name__
        raise MiloraError(f"recipe {path_or_name}: got {got}, allowed keys with values, one `key: value` a line")
    return data


def recipes() -> dict[str, Path]:
    """The shipped recipes: name to file, in the order of names."""
    folder = Path(str(resources.files("milora.recipes")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every key in it; `load_recipe` reads it back equal."""
    return strict_yaml.write(recipe.model_dump(mode="json"))


def _find(path_or_name: str | Path) -> Path:
    path, shipped = Path(path_or_name), recipes()
    if path.is_file():
        return path
    if str(path_or_name) in shipped:
        return shipped[str(path_or_name)]
    hint = nearest(str(path_or_name), shipped)
    raise MiloraError(f"recipe {path_or_name}: no such file{hint}, shipped are {', '.join(shipped)}")


def _read_flag(key: str, value: Any) -> Any:
    """A flag's text as the value that the key takes; what is no text stays as it is."""
    field = Recipe.model_fields.get(key)
    types = str(field.annotation) if field else ""
    if "list[int]" in types and isinstance(value, list):
        return [strict_yaml.parse(part, f"--{key}") if isinstance(part, str) else part for part in value]
    if field is None or not isinstance(value, str) or field.annotation in (str, str | None):
        return value
    if types.startswith("str") and "list" in types:
        return _read_names(key, value)
    if "list" in types and "," in value and value[0] not in "[({^":
        return [strict_yaml.parse(part, f"--{key}") for part in value.split(",")]
    read = strict_yaml.parse(value, f"--{key}")
    return [read] if "list" in types and isinstance(read, str | int) else read


def _read_names(key: str, value: str) -> Any:
    """Names or a regular expression: what could be both is names only where no expression would be written so."""
    parts = [part.strip() for part in value.split(",")]
    if value in ("null", "~"):
        return None
    if len(parts) > 1 and all(re.fullmatch(r"[\w.]+", part) for part in parts):
        return parts
    if value.startswith("["):
        with contextlib.suppress(MiloraError):
            read = strict_yaml.parse(value, f"--{key}")
            return read if isinstance(read, list) else value
    # PEFT takes a text for an expression over whole names, which a single module's name never fits.
    return [value] if key in MODULE_KEYS and value.isidentifier() else value


def _unknown(key: str) -> str:
    if key in OTHER_NAMES:
        return f"unknown key {key!r} (here it is {OTHER_NAMES[key]!r})"
    return f"unknown key {key!r}{nearest(key, Recipe.model_fields)}"


def _wrong_keys(errors: list[ErrorDetails], known: Mapping[str, Any]) -> dict[str, str]:
    """One sentence a key: pydantic gives one error for each type of a union that did not fit."""
    by_key: dict[str, list[ErrorDetails]] = {}
    for error in errors:
        by_key.setdefault(str(error["loc"][0]), []).append(error)
    return {key: _wrong(key, found, known) for key, found in by_key.items()}


def _wrong(key: str, errors: list[ErrorDetails], known: Mapping[str, Any]) -> str:
    if key not in known:
        return f"{key}: missing"
    # A number of the right type that is out of range fails by its range alone.
    ranges = [e["msg"].removeprefix("Input should be ") for e in errors if e["type"] in RANGES]
    allowed = " or ".join(ranges) or _type(Recipe.model_fields[key].annotation)
    return f"{key}: got {known[key]!r}, allowed {allowed}"


def _type(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return ", ".join(get_args(annotation))
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join(_type(part) for part in get_args(annotation))
    if get_origin(annotation) is Annotated:
        return _type(get_args(annotation)[0])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "{" + ", ".join(f"{key}: {_type(f.annotation)}" for key, f in annotation.model_fields.items()) + "}"
    if annotation is NoneType:
        return "null"
    return str(annotation) if get_args(annotation) else annotation.__name__

"""Flags made from the recipe's schema: each key is one, in snake_case and in kebab-case.

--lora_r 64    --lora-r=64    --packing    --no-packing    --target_modules q_proj,v_proj
"""

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from milora.errors import MiloraError

TRUTHS = {"true", "false"}


@dataclass
class Parsed:
    """A command line taken apart.

    Attributes:
        words: what is not a flag, in order.
        keys: the recipe keys that were given: the text of each value, True or False for a bare switch.
        switches: the names of the switches that were given.
    """

    words: list[str] = field(default_factory=list)
    keys: dict[str, Any] = field(default_factory=dict)
    switches: set[str] = field(default_factory=set)


def parse(
    arguments: Sequence[str],
    fields: Mapping[str, FieldInfo],
    switches: Sequence[str] = (),
    other_names: Mapping[str, str] | None = None,
) -> Parsed:
    """Take a command line apart by the fields of a pydantic model.

    Args:
        arguments: the words after the verb.
        fields: ``Model.model_fields``. Texts are left as they are: ``load_recipe`` reads and checks them.
        switches: names of flags that take no value and are no field.
        other_names: what other tools call a field, for the error alone.

    Raises:
        MiloraError: an unknown flag (with the nearest name), a flag without its value, a switch with one.
    """
    parsed = Parsed()
    rest = iter(enumerate(arguments))
    for position, word in rest:
        if not word.startswith("--"):
            parsed.words.append(word)
            continue
        flag, given, text = word[2:].partition("=")
        name = flag.replace("-", "_")
        if name in switches:
            if given:
                raise MiloraError(f"--{flag}: got {text!r}, takes no value")
            parsed.switches.add(name)
        elif name in fields and given:
            parsed.keys[name] = text
        elif name in fields:
            following = arguments[position + 1] if position + 1 < len(arguments) else None
            parsed.keys[name] = _value_after(name, following, fields[name].annotation, rest)
        elif name.startswith("no_") and bool in leaves(_annotation(fields, name[3:])) and not given:
            parsed.keys[name[3:]] = False
        else:
            raise MiloraError(_unknown(word, name, [*fields, *switches], other_names or {}))
    return parsed


def leaves(annotation: Any) -> list[Any]:
    """The types, and the strings of a Literal, that a union is made of: ``int | None`` gives both."""
    origin = get_origin(annotation)
    if origin is Literal:
        return list(get_args(annotation))
    if origin in (list, tuple, dict):
        return [origin]
    arguments = get_args(annotation)
    if not arguments:
        return [annotation]
    return [leaf for argument in arguments for leaf in leaves(argument)]


def describe(fields: Mapping[str, FieldInfo]) -> Iterator[tuple[str, str, str]]:
    """Each flag, its default and its description, for a help text."""
    for name, info in fields.items():
        default = info.get_default(call_default_factory=True)
        yield f"--{name}", _shown(default), info.description or ""


def _value_after(name: str, following: str | None, annotation: Any, rest: Iterator[Any]) -> Any:
    value = None if following is None or following.startswith("--") else following
    kinds = leaves(annotation)
    if bool in kinds:
        # A switch may stand alone, so the next word is its value only if it reads as one.
        words = TRUTHS | {kind for kind in kinds if isinstance(kind, str)}
        if value is None or value.lower() not in words:
            return True
    if value is None:
        raise MiloraError(f"--{name}: got no value (a value that begins with -- is written --{name}=VALUE)")
    next(rest)
    return value


def _annotation(fields: Mapping[str, FieldInfo], name: str) -> Any:
    return fields[name].annotation if name in fields else None


def _unknown(word: str, name: str, known: Sequence[str], other_names: Mapping[str, str]) -> str:
    near = [other_names[name]] if name in other_names else difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f", did you mean --{near[0]}?" if near else ""
    return f"{word.partition('=')[0]}: unknown flag{hint} (milora train --help lists all)"


def _shown(default: Any) -> str:
    if default is None or str(default) == "PydanticUndefined":
        return ""
    return default if isinstance(default, str) else json.dumps(default, default=str)

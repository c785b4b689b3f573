"""The methods there are: every module of this room that holds a `METHOD`."""

from __future__ import annotations

import difflib
import importlib
import pkgutil

from milora import methods as room
from milora.errors import MiloraError
from milora.methods.factors import Method


def _discover() -> dict[str, Method]:
    found: dict[str, Method] = {}
    for module in sorted(m.name for m in pkgutil.iter_modules(room.__path__)):
        if module == "registry":
            continue
        method = getattr(importlib.import_module(f"{room.__name__}.{module}"), "METHOD", None)
        if isinstance(method, Method):
            found[method.name] = method
    return found


METHODS: dict[str, Method] = _discover()


def get_method(name: str) -> Method:
    """The method of that name, or a MiloraError that names the nearest and all."""
    if name in METHODS:
        return METHODS[name]
    near = difflib.get_close_matches(name, METHODS, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise MiloraError(f"method: got {name!r}{hint}, allowed {', '.join(sorted(METHODS))}")

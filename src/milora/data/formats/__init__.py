"""The formats there are: every module of this folder that holds a `FORMAT`."""

from __future__ import annotations

import importlib
import pkgutil

from milora.data.form import Format


def _discover() -> dict[str, Format]:
    modules = sorted(m.name for m in pkgutil.iter_modules(__path__))
    found = [importlib.import_module(f"{__name__}.{m}").FORMAT for m in modules]
    return {f.name: f for f in found}


FORMATS: dict[str, Format] = _discover()

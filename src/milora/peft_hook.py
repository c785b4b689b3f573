"""Let PEFT know milora's methods whichever of the two is imported first, without importing PEFT (seconds) to do so."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType


def install() -> None:
    """Register now if PEFT is imported already, else as soon as it has been."""
    if "peft" in sys.modules:
        importlib.import_module("milora.adapters")
    else:
        sys.meta_path.insert(0, _AfterPeft())


class _AfterPeft(MetaPathFinder):
    """Finds `peft` as the other finders do, and imports `milora.adapters` once it has run.

    It stays until PEFT has really been imported: libraries look for PEFT long before they import it.
    """

    looking = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "peft" or self.looking:
            return None
        self.looking = True
        try:
            spec = find_spec("peft")
        finally:
            self.looking = False
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenRegister(spec.loader, self)
        return spec


class _ThenRegister(Loader):
    def __init__(self, loader: Loader, finder: MetaPathFinder) -> None:
        self.loader = loader
        self.finder = finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if self.finder in sys.meta_path:
            sys.meta_path.remove(self.finder)
        # PEFT reads its own loader back (importlib.resources and the like), so it gets the real one.
        if module.__spec__ is not None:
            module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        importlib.import_module("milora.adapters")

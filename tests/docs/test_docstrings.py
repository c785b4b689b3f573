"""The examples in docstrings run."""

import doctest
import importlib
import os
import pkgutil
from typing import Any

import milora


def modules() -> list[Any]:
    names = [m.name for m in pkgutil.walk_packages(milora.__path__, "milora.") if not m.name.endswith("__main__")]
    # A script for a process of its own is no module to import.
    return [importlib.import_module(name) for name in names if name != "milora.demo.stock_peft"]


def test_examples_in_docstrings_run():
    found, failed = set(), []
    for module in modules():
        # In continued lines `...` is Python's own; anything skipped in an output would not be tested.
        runner = doctest.DocTestRunner(verbose=False)
        for example in doctest.DocTestFinder(exclude_empty=True).find(module):
            if example.examples:
                found.add(example.name)
                said: list[str] = []
                if runner.run(example, out=said.append).failed:
                    failed.append("".join(said))
    assert not failed, os.linesep.join(failed)
    assert {"milora.linalg.engine.bottom", "milora.recipes.load.load_recipe", "milora.methods.factors.Method.count",
            "milora.data.split.split_validation", "milora.models.targets.parse_targets"} <= found  # fmt: skip

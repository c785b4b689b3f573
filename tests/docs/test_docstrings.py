"""The examples in docstrings run."""

import doctest
import importlib
import os
from pathlib import Path
from typing import Any

import pytest

import milora


def modules() -> list[Any]:
    """Those that hold an example: the others are not imported, for that takes long."""
    package = Path(milora.__file__).parent
    with_examples = [path for path in package.rglob("*.py") if ">>> " in path.read_text(encoding="utf-8")]
    names = [path.relative_to(package.parent).with_suffix("").parts for path in sorted(with_examples)]
    return [importlib.import_module(".".join(name).removesuffix(".__init__")) for name in names]


@pytest.mark.slow
def test_examples_in_docstrings_run():
    found, failed = set(), []
    for module in modules():
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

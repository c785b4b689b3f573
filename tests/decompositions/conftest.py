"""A store in a temporary folder, and weights that differ enough to be told apart."""

from pathlib import Path

import pytest
import torch

from milora.decompositions import Store
from milora.decompositions import part as parts


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store without a limit."""
    return Store(tmp_path / "store")


@pytest.fixture
def W() -> torch.Tensor:
    """A weight (24, 16) whose values bfloat16 cannot hold."""
    return torch.randn(24, 16, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the parts that the engine was asked for, in order."""
    asked: list[str] = []
    compute = parts.Part.compute

    def counted(self, weight, strict=False):
        asked.append(self.name)
        return compute(self, weight, strict)

    monkeypatch.setattr(parts.Part, "compute", counted)
    return asked

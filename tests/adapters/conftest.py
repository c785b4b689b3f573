"""A small model and its input, for the tests of the laws."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM


@pytest.fixture
def base(tiny_llama) -> Callable[..., nn.Module]:
    """A fresh tiny Llama in a dtype."""
    return lambda dtype=torch.float32: AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=dtype).eval()


@pytest.fixture
def ids() -> torch.Tensor:
    """Token ids (2, 12)."""
    return torch.randint(3, 250, (2, 12), generator=torch.Generator().manual_seed(3))

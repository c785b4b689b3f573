"""The tiny Llama of the tests on a quantised base, on the CPU.

What a test must know of such a base (neither is an adapter's doing, plain LoRA has both):

- bnb-8bit multiplies in int8 in eval mode and with the dequantised weight in train mode, so that the base itself gives
  other logits in the two: compare an adapted model with its base in the same mode.
- bnb-4bit, as transformers and bitsandbytes load it, is packed for a kernel without gradients by its first forward in
  eval mode on a CPU with AVX512-BF16. `load_model` and `get_peft_model` prevent it; a model that was evaluated
  before it met either is another one afterwards.
"""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

from milora.models.load import load_model
from milora.models.quantised import QUANTIZATIONS

# The quantisations that compute in eval mode otherwise than in train mode.
OTHER_IN_TRAIN_MODE = ("bnb-8bit",)


def quantised(folder: Path, quantization: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A fresh model of a folder, quantised, in eval mode; the test is skipped where the package is not installed.

    Args:
        folder: of the high-precision checkpoint.
        quantization: one of `QUANTIZATIONS`.
        dtype: of what is not quantised.
    """
    skip_unless_installed(quantization)
    name = str(dtype).removeprefix("torch.")
    return load_model(folder, quantization=quantization, dtype=name, device="cpu").eval()


def skip_unless_installed(quantization: str) -> None:
    """Skip the test where the quantisation's package is not installed."""
    package = "bitsandbytes" if quantization.startswith("bnb") else "torchao"
    if find_spec(package) is None:
        pytest.skip(f"{quantization} needs {package}: pip install 'milora[quant]'")


__all__ = ["OTHER_IN_TRAIN_MODE", "QUANTIZATIONS", "quantised", "skip_unless_installed"]

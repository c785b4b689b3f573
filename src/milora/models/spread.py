"""Weights that several processes hold between them while a model is read: by DeepSpeed ZeRO-3, or for FSDP.

ZeRO-3 gives each process a part of every weight. FSDP with `cpu_ram_efficient_loading` gives the first process of a
machine all weights and the others none, until the model is spread. Later, while training, see `training.spread`.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable
from contextlib import contextmanager

from torch import nn
from transformers.distributed.fsdp import is_fsdp_enabled
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled


def stays_on_cpu() -> bool:
    """Whether weights are put on their devices only when they are spread; a whole model need not fit on one."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true" or is_deepspeed_zero3_enabled()


def hands_out_values() -> bool:
    """Whether the first process of a machine alone reads the weights, to hand them out when the model is spread."""
    return is_fsdp_enabled()


def values_elsewhere() -> bool:
    """Whether this process has the shapes of the weights alone, and waits for their values."""
    return hands_out_values() and os.environ.get("LOCAL_RANK", "0") != "0"


@contextmanager
def gathered(parameters: Iterable[nn.Parameter]) -> Generator[None]:
    """Within the block the parameters are whole, to read; all processes must enter it together."""
    if not is_deepspeed_zero3_enabled():
        yield
        return
    import deepspeed  # pyright: ignore[reportMissingImports]

    with deepspeed.zero.GatheredParameters(list(parameters), modifier_rank=None):
        yield

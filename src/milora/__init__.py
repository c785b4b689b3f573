"""milora: fine-tuning on singular vectors (MiLoRA and its relatives), inside Hugging Face PEFT.

from milora import SpectralConfig
from peft import get_peft_model

model = get_peft_model(model, SpectralConfig(method="milora", r=32, target_modules="all-linear"))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from milora import peft_hook
from milora.errors import MiloraError

if TYPE_CHECKING:
    from milora.adapters import SpectralConfig, export_lora, load_adapter, merge_adapter

__version__ = "0.1.0"
__all__ = ["MiloraError", "SpectralConfig", "export_lora", "load_adapter", "merge_adapter"]

peft_hook.install()


def __getattr__(name: str) -> Any:
    # torch, transformers and PEFT take seconds to import; `milora --help` should not.
    if name in __all__:
        return getattr(importlib.import_module("milora.adapters"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

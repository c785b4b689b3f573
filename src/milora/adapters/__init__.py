"""Inside Hugging Face PEFT: the only room that touches it.

Importing this room registers `SpectralConfig` with PEFT, so that `get_peft_model`, `PeftModel.from_pretrained` and all
that rests on them know the methods of `milora.methods`.
"""

from milora.adapters import registration
from milora.adapters.attach import attach, load_adapter, load_mixture
from milora.adapters.build import method_names, peft_config
from milora.adapters.changes import weight_changes
from milora.adapters.checks import check_leaves
from milora.adapters.compose import compose
from milora.adapters.config import SpectralConfig
from milora.adapters.export import export_lora
from milora.adapters.layer import SpectralLinear
from milora.adapters.live_changes import model_changes
from milora.adapters.merge import merge_adapter
from milora.adapters.merge_quantised import MergeCost, merge_quantised
from milora.adapters.model import SpectralModel
from milora.adapters.quantised import decomposed_from
from milora.adapters.strip import strip

registration.register(SpectralConfig, SpectralModel)

__all__ = [
    "MergeCost",
    "SpectralConfig",
    "SpectralLinear",
    "SpectralModel",
    "attach",
    "check_leaves",
    "compose",
    "decomposed_from",
    "export_lora",
    "load_adapter",
    "load_mixture",
    "merge_adapter",
    "merge_quantised",
    "method_names",
    "model_changes",
    "peft_config",
    "strip",
    "weight_changes",
]

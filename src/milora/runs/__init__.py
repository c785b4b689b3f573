"""What lies in a run folder: the only way in which training, evaluation and analysis talk."""

from milora.runs.card import measured, model_card, refresh_card
from milora.runs.folder import RunFolder
from milora.runs.metrics import append_metric, keep_metrics_up_to, kept_step, read_metrics
from milora.runs.provenance import provenance

__all__ = [
    "RunFolder",
    "append_metric",
    "keep_metrics_up_to",
    "kept_step",
    "measured",
    "model_card",
    "provenance",
    "read_metrics",
    "refresh_card",
]

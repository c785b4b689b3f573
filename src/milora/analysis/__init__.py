"""Measurements of a tuned model beside its scores."""

from milora.analysis.analyse import analyse
from milora.analysis.forgetting import Forgetting, forgetting
from milora.analysis.prediction import measured_ratios, predict_update, predicted_ratios
from milora.analysis.texts import read_text
from milora.models.changes import checkpoint_changes

__all__ = [
    "Forgetting",
    "analyse",
    "checkpoint_changes",
    "forgetting",
    "measured_ratios",
    "predict_update",
    "predicted_ratios",
    "read_text",
]

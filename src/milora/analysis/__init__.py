"""Measurements of a tuned model beside its scores."""

from milora.analysis.forgetting import Forgetting, forgetting
from milora.analysis.prediction import measured_ratios, predict_update, predicted_ratios
from milora.analysis.texts import read_text

__all__ = ["Forgetting", "forgetting", "measured_ratios", "predict_update", "predicted_ratios", "read_text"]

"""Measurements of a tuned model beside its scores."""

from milora.analysis.forgetting import Forgetting, forgetting
from milora.analysis.texts import read_text

__all__ = ["Forgetting", "forgetting", "read_text"]

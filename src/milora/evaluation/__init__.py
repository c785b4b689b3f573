"""Evaluation through lm-evaluation-harness: one model, or base and tuned side by side."""

from milora.evaluation.compare import evaluate_base_and_tuned, refuse_measured, write_results
from milora.evaluation.evaluate import evaluate

__all__ = ["evaluate", "evaluate_base_and_tuned", "refuse_measured", "write_results"]

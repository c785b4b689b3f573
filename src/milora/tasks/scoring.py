"""What joins the extractors to the harness: filters over completions, and the score of one row.

A filter gets the completions of all rows, one list per row, and the rows; it returns the same shape.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from milora.tasks.extraction import (
    flexible_label,
    flexible_number,
    same_number,
    strict_label,
    strict_number,
)

Completions = Sequence[Sequence[str]]
Docs = Sequence[Mapping[str, Any]]


def strict_labels(completions: Completions, docs: Docs) -> list[list[str]]:
    """The label in the trained phrase, per completion."""
    pairs = zip(completions, docs, strict=True)
    return [[strict_label(text, doc["labels"]) for text in texts] for texts, doc in pairs]


def flexible_labels(completions: Completions, docs: Docs) -> list[list[str]]:
    """The first label, as published, per completion."""
    pairs = zip(completions, docs, strict=True)
    return [[flexible_label(text, doc["labels"]) for text in texts] for texts, doc in pairs]


def strict_numbers(completions: Completions, docs: Docs) -> list[list[str]]:
    """The number after the last "The answer is: ", per completion."""
    return [[strict_number(text) for text in texts] for texts in completions]


def flexible_numbers(completions: Completions, docs: Docs) -> list[list[str]]:
    """The last number, per completion."""
    return [[flexible_number(text) for text in texts] for texts in completions]


def commonsense(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """1 when the extracted label is the answer."""
    return {"exact_match": float(results[0] == doc["answer"])}


def gsm8k(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """1 when the extracted number has the value of the gold number."""
    return {"exact_match": float(same_number(results[0], doc["gold"]))}


def wording(doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, float]:
    """Scores of one span of a text; two of them where the model says how many tokens it has."""
    loglikelihood, exact = results[0]
    scores = {"nll_per_byte": -loglikelihood / len(doc["span"].encode("utf-8")), "exact": float(exact)}
    if tokens := getattr(results[0], "tokens", 0):
        scores |= {"nll": -loglikelihood / tokens, "token_accuracy": results[0].right / tokens}
    return scores

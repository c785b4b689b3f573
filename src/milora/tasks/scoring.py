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
from milora.tasks.math_answers import clean_answer, compat_answer
from milora.tasks.math_compat import compat_equivalent, compat_number, compat_same_number
from milora.tasks.math_equivalence import equivalent

Completions = Sequence[Sequence[str]]
Docs = Sequence[Mapping[str, Any]]


class CompatAnswer(str):
    """An answer to be judged as the published code does; the harness does not say which filter an answer is of."""


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


def compat_numbers(completions: Completions, docs: Docs) -> list[list[str]]:
    """The number as the published code reads and rounds it, per completion."""
    return [[CompatAnswer(compat_number(text)) for text in texts] for texts in completions]


def clean_math(completions: Completions, docs: Docs) -> list[list[str]]:
    """The answer after the phrase, or else the boxed one, per completion."""
    return [[clean_answer(text) for text in texts] for texts in completions]


def compat_math(completions: Completions, docs: Docs) -> list[list[str]]:
    """The answer after the phrase, as the published code takes it out, per completion."""
    return [[CompatAnswer(compat_answer(text)) for text in texts] for texts in completions]


def commonsense(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """1 when the extracted label is the answer."""
    return {"exact_match": float(results[0] == doc["answer"])}


def gsm8k(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """1 when the extracted number has the value of the gold number, or counts as it in the published code."""
    same = compat_same_number if isinstance(results[0], CompatAnswer) else same_number
    return {"exact_match": float(same(results[0], doc["gold"]))}


def math(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """1 when the extracted answer is the gold answer, or counts as it in the published code."""
    same = compat_equivalent if isinstance(results[0], CompatAnswer) else equivalent
    return {"exact_match": float(same(results[0], doc["gold"]))}


def wording(doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, float]:
    """Scores of one span of a text; two of them where the model says how many tokens it has."""
    loglikelihood, exact = results[0]
    scores = {"nll_per_byte": -loglikelihood / len(doc["span"].encode("utf-8")), "exact": float(exact)}
    if tokens := getattr(results[0], "tokens", 0):
        scores |= {"nll": -loglikelihood / tokens, "token_accuracy": results[0].right / tokens}
    return scores


def length(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """The length of an output in characters."""
    return {"length": float(len(results[0].strip()))}

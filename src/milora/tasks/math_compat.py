"""Whether two answers are the same, as the papers' scorers judge it. Faults included, so that numbers compare.

Published behaviour of MiLoRA's, LoRA-XS's and PiSSA's (April to November 2024) MATH and GSM8K evaluation, which
all descend from Hendrycks et al. (arXiv:2103.03874) and MetaMath (arXiv:2309.12284). Written from a description
of what they do. Known faults, all of them kept:

- An answer that the normalisation cannot read makes the prediction be compared with itself, so it counts as
  right: each answer with one slash and a side that is no whole number (``x/2``), two texts with units, or a
  ``\\frac`` or ``\\sqrt`` at its end. If the gold is such an answer, every prediction is right.
- A hundred times and a hundredth of the gold are right, and so is what lies within 1e-4 of it.
- GSM8K reads 1,234 out of 1,234,567, and rounds to a whole number before it compares.

One departure: where all else fails the published code lets sympy parse both sides, by a parser that evaluates
Python; here math-verify's LaTeX parser does it (:mod:`milora.tasks.sympy_worker`).
"""

import re
from fractions import Fraction
from math import isclose, isinf

from milora.tasks import sympy_worker
from milora.tasks.extraction import ANSWER_PHRASE, number_value

_NUMBER = re.compile(r"[-+]?\d*[.,/]?\d+")
_REMOVED_FIRST = ("\n", r"\!")
_REMOVED = (r"\left", r"\right", r"^{\circ}", r"^\circ", r"\$")


def compat_equivalent(prediction: str, gold: str) -> bool:
    """The published verdict on two MATH answers; an empty prediction is wrong."""
    if not prediction:
        return False
    if raises_in_compat(prediction) or raises_in_compat(gold):
        return True  # the prediction is compared with itself
    found, wanted = hendrycks_form(prediction), hendrycks_form(gold)
    return _math_equal(found, wanted) or found == wanted


def raises_in_compat(answer: str) -> bool:
    """Whether the published normalisation fails on an answer: as a gold it makes every prediction right."""
    try:
        hendrycks_form(answer)
    except (ValueError, IndexError, AssertionError):
        return True
    return False


def compat_number(completion: str) -> str:
    """The published reading of a GSM8K completion, as a whole number; empty where there is none."""
    _, phrase, rest = completion.rpartition(ANSWER_PHRASE)
    match = _NUMBER.search(rest) if phrase else None
    if match is None:
        return ""
    numerator, slash, denominator = match.group().replace(",", "").partition("/")
    if slash and not numerator.strip("+-"):
        return ""
    try:
        # A division by zero is its numerator.
        value = Fraction(int(numerator), int(denominator)) if slash and int(denominator) else float(numerator)
        return "" if isinf(value) else str(round(float(value)))
    except (ValueError, OverflowError):
        return ""


def compat_same_number(answer: str, gold: str) -> bool:
    """The published verdict on a GSM8K answer of :func:`compat_number`."""
    value = number_value(gold)
    return bool(answer) and value is not None and _close_to_a_hundred(float(answer), float(value))


def hendrycks_form(answer: str) -> str:
    """The string that the published code compares.

    Raises:
        ValueError, IndexError, AssertionError: where the published code fails.
    """
    for mark in _REMOVED_FIRST:
        answer = answer.replace(mark, "")
    answer = answer.replace("\\\\", "\\").replace("tfrac", "frac").replace("dfrac", "frac")
    for mark in _REMOVED:
        answer = answer.replace(mark, "")
    before_unit, *units = answer.split(r"\text{ ")
    if len(units) > 1:
        raise AssertionError("two units")
    answer = before_unit.replace(r"\%", "").replace(" .", " 0.").replace("{.", "{0.")
    if not answer:
        return answer
    answer = f"0{answer}" if answer.startswith(".") else answer
    name, equals, value = answer.partition("=")
    if equals and "=" not in value and len(name) <= 2:
        answer = value
    answer = _braced_roots(answer).replace(" ", "")
    answer = _braced_fractions(answer)
    answer = r"\frac{1}{2}" if answer == "0.5" else answer
    return _slash_as_fraction(answer)


def _braced_roots(answer: str) -> str:
    first, *roots = answer.split(r"\sqrt")
    # Indexing, not startswith: a root with nothing after it fails in the published code too.
    return first + "".join(rf"\sqrt{r}" if r[0] == "{" else rf"\sqrt{{{r[0]}}}{r[1:]}" for r in roots)


def _braced_fractions(answer: str) -> str:
    first, *fractions = answer.split(r"\frac")
    made = first
    for rest in fractions:
        if rest[0] == "{":
            made += rf"\frac{rest}"
        elif len(rest) < 2:
            return answer
        else:
            denominator = rest[1:] if rest[1] == "{" else f"{{{rest[1]}}}{rest[2:]}"
            made += rf"\frac{{{rest[0]}}}{denominator}"
    return made


def _slash_as_fraction(answer: str) -> str:
    sides = answer.split("/")
    if len(sides) != 2:
        return answer
    numerator, denominator = int(sides[0]), int(sides[1])  # fails where a side is no whole number
    written = f"{numerator}/{denominator}"
    return rf"\frac{{{numerator}}}{{{denominator}}}" if written == answer else answer


def _math_equal(prediction: str, gold: str) -> bool:
    numbers = _float(prediction), _float(gold)
    if numbers[0] is not None and numbers[1] is not None:
        return _close_to_a_hundred(numbers[0], numbers[1])
    if not prediction:
        return False
    if _without_brackets(prediction, gold):
        return True
    if _parts_equal(prediction.strip(), gold.strip()):
        return True
    return sympy_worker.ask("close", prediction, gold)


def _without_brackets(prediction: str, gold: str) -> bool:
    """Equal once brackets are off; square and round ones are kept apart."""
    a, b = prediction.strip(), gold.strip()
    square = a.startswith("[") and a.endswith("]") and not b.startswith("(")
    round_ = a.startswith("(") and a.endswith(")") and not b.startswith("[")
    if square or round_:
        a, b = a.strip("[]()"), b.strip("[]()")
    bare = str.maketrans("", "", "{}()")
    return a.translate(bare) == b.translate(bare)


def _parts_equal(prediction: str, gold: str) -> bool:
    """[a, b] and [c, d], or (a, b) and (c, d), part by part."""
    pairs = ("[]", "()")
    if not any(all(t[:1] == p[0] and t[-1:] == p[1] for t in (prediction, gold)) for p in pairs):
        return False
    found, wanted = prediction[1:-1].split(","), gold[1:-1].split(",")
    return len(found) == len(wanted) and all(_math_equal(a, b) for a, b in zip(found, wanted, strict=True))


def _close_to_a_hundred(prediction: float, gold: float) -> bool:
    return any(isclose(value, prediction, rel_tol=1e-4) for value in (gold / 100, gold, gold * 100))


def _float(text: str) -> float | None:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None

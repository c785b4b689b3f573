"""Reading the answer out of a generated text. Pure functions; an empty string means that there is none.

Commonsense (LLM-Adapters, arXiv:2304.01933, ``commonsense_evaluate.py``):
    flexible: the first lower-case match of the set's labels. This is the published protocol.
    strict:   the label in the first whole phrase "the correct answer is X" that training taught.
GSM8K (MetaMath, arXiv:2309.12284, ``eval_gsm8k.py``):
    strict:   the first number after the last "The answer is: ", which is the published phrase. Numbers are
              read as a whole (the published expression takes 1,234 out of 1,234,567) and must have the gold's
              exact value: the published scoring also rounds, and accepts a hundred times or a hundredth of the
              gold, which is done in :mod:`milora.tasks.math_compat` alone.
    flexible: the last number of the text.
"""

import re
from collections.abc import Sequence
from fractions import Fraction

ANSWER_PHRASE = "The answer is: "
RESPONSE_MARK = "### Response:"

# A sign after a letter, a digit or a bracket is an operator ("3-5"), so it is no part of the number.
_SIGN = r"(?:(?<![\w.)\]])[-+\u2212])?"
# Digits in groups of three ("1,234,567") or plain, with decimals; or decimals alone (".5").
_VALUE = r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
_NUMBER = re.compile(rf"(?:\$[-+\u2212]|{_SIGN}\$?){_VALUE}(?:/{_VALUE})?", re.ASCII)


def flexible_label(completion: str, labels: Sequence[str]) -> str:
    """The first label that occurs in the response, as LLM-Adapters scores it.

    The published code splits the output at "### Response:" and keeps what stands between the prompt's mark
    and the next one, so a second mark written by the model ends the response.

    Args:
        completion: the generated text, without the prompt.
        labels: for example ``("answer1", "answer2")``; case counts.
    """
    response = completion.split(RESPONSE_MARK)[0]
    match = re.search("|".join(map(re.escape, labels)), response)
    return match.group() if match else ""


def strict_label(completion: str, labels: Sequence[str]) -> str:
    """The label in the first "the correct answer is X", where X is a whole label and nothing more."""
    response = completion.split(RESPONSE_MARK)[0]
    match = re.search(rf"the correct answer is ({'|'.join(map(re.escape, labels))})(?!\w)", response)
    return match.group(1) if match else ""


def strict_number(completion: str) -> str:
    """The first number after the last "The answer is: ", as it is written."""
    _, phrase, rest = completion.rpartition(ANSWER_PHRASE)
    match = _NUMBER.search(rest) if phrase else None
    return match.group() if match else ""


def flexible_number(completion: str) -> str:
    """The last number of the text, as it is written."""
    numbers = _NUMBER.findall(completion)
    return numbers[-1] if numbers else ""


def number_value(text: str) -> Fraction | None:
    """The exact value of a written number: "$1,234.50", "-3", "18.", "3/4".

    Returns:
        None when the text is not one number, or divides by zero.
    """
    plain = text.replace(",", "").replace("$", "").replace("\u2212", "-")
    numerator, slash, denominator = plain.strip().rstrip(".").partition("/")
    try:
        value = Fraction(numerator)
        return value / Fraction(denominator) if slash else value
    except (ValueError, ZeroDivisionError):
        return None


def same_number(answer: str, gold: str) -> bool:
    """Whether two written numbers have the same value, with no tolerance; False when one is no number."""
    value = number_value(answer)
    return value is not None and value == number_value(gold)

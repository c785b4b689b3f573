"""Hard cases of the extractors, each judged by hand."""

from fractions import Fraction

import pytest

from milora.tasks.commonsense_forms import SETS
from milora.tasks.extraction import (
    flexible_label,
    flexible_number,
    number_value,
    same_number,
    strict_label,
    strict_number,
)

ANSWERS = SETS["arc_easy"].labels
TRUTH = SETS["boolq"].labels

# completion, labels, strict, flexible
LABEL_CASES = [
    ("the correct answer is answer2", ANSWERS, "answer2", "answer2"),
    ("the correct answer is answer2.", ANSWERS, "answer2", "answer2"),
    ("  the correct answer is true\n", TRUTH, "true", "true"),
    ("answer3", ANSWERS, "", "answer3"),
    ("The correct answer is answer3", ANSWERS, "", "answer3"),
    ("the correct answer is Answer3", ANSWERS, "", ""),
    ("the correct answer is: answer1", ANSWERS, "", "answer1"),
    ("Answer1", ANSWERS, "", ""),
    ("TRUE", TRUTH, "", ""),
    ("the correct answer is answer12", ANSWERS, "", "answer1"),
    ("the correct answer is answer6", ANSWERS, "", ""),
    ("the correct answer is", ANSWERS, "", ""),
    ("", ANSWERS, "", ""),
    ("not answer1, the correct answer is answer4", ANSWERS, "answer4", "answer1"),
    ("the correct answer is answer1 the correct answer is answer2", ANSWERS, "answer1", "answer1"),
    ("untrue, so false", TRUTH, "", "true"),
    ("the correct answer is falsehood", TRUTH, "", "false"),
    ("I do not know\n\n### Response:\nthe correct answer is answer1", ANSWERS, "", ""),
    ("the correct answer is answer5 ### Response: answer1", ANSWERS, "answer5", "answer5"),
    ("the correct answer is solution1", SETS["piqa"].labels, "solution1", "solution1"),
    ("the correct answer is ending4", SETS["hellaswag"].labels, "ending4", "ending4"),
    ("the correct answer is option2", SETS["winogrande"].labels, "option2", "option2"),
]

# completion, strict, flexible
NUMBER_CASES = [
    ("She makes 9 * 2 = 18.\nThe answer is: 18", "18", "18"),
    ("The answer is: 1,234,567", "1,234,567", "1,234,567"),
    ("The answer is: 1,234,567.50 dollars", "1,234,567.50", "1,234,567.50"),
    ("The answer is: $1,000.", "$1,000", "$1,000"),
    ("The answer is: -3", "-3", "-3"),
    ("The answer is: -$3", "-$3", "-$3"),
    ("The answer is: $-3", "$-3", "$-3"),
    ("The answer is: +7", "+7", "+7"),
    ("The answer is: 18.5", "18.5", "18.5"),
    ("The answer is: .5", ".5", ".5"),
    ("The answer is: 18.", "18", "18"),
    ("The answer is: 3/4", "3/4", "3/4"),
    ("The answer is: x = 5", "5", "5"),
    ("The answer is: $\\boxed{42}$", "42", "42"),
    ("The answer is: 5 apples and 3 pears", "5", "3"),
    ("The answer is: 5\nThe answer is: 6", "6", "6"),
    ("The answer is: 5\n#### 7", "5", "7"),
    ("The answer is: five", "", ""),
    ("The answer is 5", "", "5"),
    ("the answer is: 5", "", "5"),
    ("The answer is:5", "", "5"),
    ("10 - 3 = 7, 3-5", "", "5"),
    ("between 10-20", "", "20"),
    ("(12)-4", "", "4"),
    ("#### 18", "", "18"),
    ("2 for 1,2,3", "", "3"),
    ("100% of 50%", "", "50"),
    ("no number", "", ""),
    ("", "", ""),
]

VALUES = [
    ("18", Fraction(18)),
    ("18.", Fraction(18)),
    ("18.0", Fraction(18)),
    ("1,234,567", Fraction(1234567)),
    ("$1,234.50", Fraction(2469, 2)),
    ("-$3", Fraction(-3)),
    ("\u22125", Fraction(-5)),
    (".5", Fraction(1, 2)),
    ("6/8", Fraction(3, 4)),
    ("5/0", None),
    ("", None),
    ("-", None),
    ("five", None),
]


@pytest.mark.parametrize(("completion", "labels", "strict", "flexible"), LABEL_CASES)
def test_labels(completion, labels, strict, flexible):
    assert strict_label(completion, labels) == strict
    assert flexible_label(completion, labels) == flexible


@pytest.mark.parametrize(("completion", "strict", "flexible"), NUMBER_CASES)
def test_numbers(completion, strict, flexible):
    assert strict_number(completion) == strict
    assert flexible_number(completion) == flexible


@pytest.mark.parametrize(("text", "value"), VALUES)
def test_value_is_exact(text, value):
    assert number_value(text) == value


@pytest.mark.parametrize(
    ("answer", "gold", "same"),
    [
        ("18.00", "18", True),
        ("36/2", "18", True),
        ("18.4", "18", False),  # the published scorer rounds to an integer first
        ("0.18", "18", False),  # the published scorer accepts gold / 100
        ("1,234", "1234567", False),
        ("", "18", False),
        ("", "", False),
    ],
)
def test_numbers_compare_without_tolerance(answer, gold, same):
    assert same_number(answer, gold) is same

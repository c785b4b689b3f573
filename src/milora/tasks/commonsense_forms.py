"""The eight commonsense sets: from a row of the official data set to the instruction of LLM-Adapters.

Source of the forms: Hu et al., LLM-Adapters (arXiv:2304.01933), ``dataset/*/test.json``. A form keeps a
row's text as it is, spaces included; a question of BoolQ gets its question mark.

    >>> piqa({"goal": "Make outdoor pillow.", "sol1": "Tin can.", "sol2": "Trash bag.", "label": 1})
    ('Please choose the correct solution to the question: Make outdoor pillow.\\n\\nSolution1: Tin can.\\n\\n\
Solution2: Trash bag.\\n\\nAnswer format: solution1/solution2', 'solution2')
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]
Form = Callable[[Row], tuple[str, str]]  # official row -> (instruction, answer)


def boolq(row: Row) -> tuple[str, str]:
    """Official fields: question (without a question mark), answer (bool). The passage is not shown."""
    text = f"Please answer the following question with true or false, question: {row['question']}?"
    return f"{text}\n\nAnswer format: true/false", "true" if row["answer"] else "false"


def piqa(row: Row) -> tuple[str, str]:
    """Official fields: goal, sol1, sol2, label (0 or 1)."""
    text = f"Please choose the correct solution to the question: {row['goal']}"
    choices = f"Solution1: {row['sol1']}\n\nSolution2: {row['sol2']}"
    return f"{text}\n\n{choices}\n\nAnswer format: solution1/solution2", f"solution{int(row['label']) + 1}"


def social_i_qa(row: Row) -> tuple[str, str]:
    """Official fields: context, question, answerA, answerB, answerC, label ("1" to "3")."""
    choices = [row["answerA"], row["answerB"], row["answerC"]]
    return _answers(f"{row['context']} {row['question']}", choices, int(row["label"]) - 1)


def hellaswag(row: Row) -> tuple[str, str]:
    """Official fields: activity_label, ctx, endings (4), label ("0" to "3"). WikiHow marks stay in."""
    text = f"Please choose the correct ending to complete the given sentence: {row['activity_label']}: "
    endings = _numbered("Ending", row["endings"])
    form = _answer_format("ending", len(row["endings"]))
    return f"{text}{row['ctx']}\n\n{endings}\n\n{form}", f"ending{int(row['label']) + 1}"


def winogrande(row: Row) -> tuple[str, str]:
    """Official fields: sentence (with ``_``), option1, option2, answer ("1" or "2")."""
    text = "Please choose the correct answer to fill in the blank to complete the given sentence: "
    options = _numbered("Option", [row["option1"], row["option2"]])
    # One space before "Answer format", where all other sets have an empty line.
    return f"{text}{row['sentence']}\n\n{options} Answer format: option1/option2", f"option{row['answer']}"


def arc(row: Row) -> tuple[str, str]:
    """Official fields: question, choices {text, label} (3 to 5), answerKey (a letter or a digit)."""
    labels = list(row["choices"]["label"])
    return _answers(row["question"], row["choices"]["text"], labels.index(row["answerKey"]))


def openbookqa(row: Row) -> tuple[str, str]:
    """Official fields: question_stem, choices {text, label} (4), answerKey (a letter)."""
    labels = list(row["choices"]["label"])
    return _answers(row["question_stem"], row["choices"]["text"], labels.index(row["answerKey"]))


def _answers(question: str, choices: Sequence[str], gold: int) -> tuple[str, str]:
    text = f"Please choose the correct answer to the question: {question}"
    form = _answer_format("answer", len(choices))
    return f"{text}\n\n{_numbered('Answer', choices)}\n\n{form}", f"answer{gold + 1}"


def _numbered(word: str, choices: Sequence[str]) -> str:
    return " ".join(f"{word}{number}: {choice}" for number, choice in enumerate(choices, start=1))


def _answer_format(word: str, count: int) -> str:
    return "Answer format: " + "/".join(f"{word}{number}" for number in range(1, count + 1))


@dataclass(frozen=True)
class CommonsenseSet:
    """One of the eight sets.

    Args:
        files: file-name patterns of local rows in LLM-Adapters form.
        hub: data set, configuration and split on the hub; the split that LLM-Adapters tests on.
        labels: what the published expression looks for.
        form: the conversion of a hub row.
    """

    files: tuple[str, ...]
    hub: tuple[str, str | None, str]
    labels: tuple[str, ...]
    form: Form


def _files(*names: str) -> tuple[str, ...]:
    endings = (".jsonl", ".jsonl.gz", "/test.json")  # the last is LLM-Adapters' own folder layout
    return tuple(name + ending for name in names for ending in endings)


_ANSWERS = ("answer1", "answer2", "answer3", "answer4", "answer5")
_ENDINGS = ("ending1", "ending2", "ending3", "ending4")

SETS: dict[str, CommonsenseSet] = {
    "boolq": CommonsenseSet(_files("boolq"), ("google/boolq", None, "validation"), ("true", "false"), boolq),
    "piqa": CommonsenseSet(_files("piqa"), ("baber/piqa", None, "validation"), ("solution1", "solution2"), piqa),
    "social_i_qa": CommonsenseSet(_files("social_i_qa"), ("lighteval/siqa", None, "validation"), _ANSWERS, social_i_qa),
    "hellaswag": CommonsenseSet(_files("hellaswag"), ("Rowan/hellaswag", None, "validation"), _ENDINGS, hellaswag),
    "winogrande": CommonsenseSet(
        _files("winogrande"),
        ("allenai/winogrande", "winogrande_xl", "validation"),
        ("option1", "option2"),
        winogrande,
    ),
    "arc_easy": CommonsenseSet(_files("ARC-Easy", "arc_easy"), ("allenai/ai2_arc", "ARC-Easy", "test"), _ANSWERS, arc),
    "arc_challenge": CommonsenseSet(
        _files("ARC-Challenge", "arc_challenge"), ("allenai/ai2_arc", "ARC-Challenge", "test"), _ANSWERS, arc
    ),
    "openbookqa": CommonsenseSet(_files("openbookqa"), ("allenai/openbookqa", "main", "test"), _ANSWERS, openbookqa),
}

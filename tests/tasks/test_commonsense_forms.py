"""The forms against rows of LLM-Adapters' own test files.

Each published instruction is taken apart into the fields of the official data set by an expression
written for this test; the form has to put the very same text and answer together again.
"""

import json
import re

import pytest

from milora.tasks.commonsense_forms import SETS

QUESTION = r"Please choose the correct answer to the question: (?P<q>.*)\n\n(?P<c>Answer1: .*)\n\nAnswer format: "


def _split(word, text):
    """The texts after "Word1: ", "Word2: ", ... which one space separates."""
    return re.split(rf" ?{word}\d: ", text)[1:]


def _gold(answer):
    return int(re.sub(r"\D", "", answer)) - 1


def _boolq(text, answer):
    q = re.search(r"question: (.*)\?\n\nAnswer format", text, re.DOTALL).group(1)
    return {"question": q, "answer": answer == "true"}


def _piqa(text, answer):
    pattern = r"question: (.*)\n\nSolution1: (.*)\n\nSolution2: (.*)\n\nAnswer format"
    goal, sol1, sol2 = re.search(pattern, text, re.DOTALL).groups()
    return {"goal": goal, "sol1": sol1, "sol2": sol2, "label": _gold(answer)}


def _social(text, answer):
    found = re.search(QUESTION, text, re.DOTALL)
    context, question = found["q"].split(" ", 1)
    a, b, c = _split("Answer", found["c"])
    return {
        "context": context, "question": question, "answerA": a, "answerB": b, "answerC": c,
        "label": str(_gold(answer) + 1),
    }  # fmt: skip


def _hellaswag(text, answer):
    pattern = r"sentence: (.*?): (.*)\n\n(Ending1: .*)\n\nAnswer format"
    activity, ctx, endings = re.search(pattern, text, re.DOTALL).groups()
    return {
        "activity_label": activity, "ctx": ctx, "endings": _split("Ending", endings),
        "label": str(_gold(answer)),
    }  # fmt: skip


def _winogrande(text, answer):
    sentence, options = re.search(r"sentence: (.*)\n\n(.*) Answer format", text, re.DOTALL).groups()
    one, two = _split("Option", options)
    return {"sentence": sentence, "option1": one, "option2": two, "answer": str(_gold(answer) + 1)}


def _letters(field):
    def parse(text, answer):
        found = re.search(QUESTION, text, re.DOTALL)
        choices = _split("Answer", found["c"])
        labels = list("ABCDE"[: len(choices)])
        key = labels[_gold(answer)]
        return {field: found["q"], "choices": {"text": choices, "label": labels}, "answerKey": key}

    return parse


OFFICIAL = {
    "boolq": _boolq,
    "piqa": _piqa,
    "social_i_qa": _social,
    "hellaswag": _hellaswag,
    "winogrande": _winogrande,
    "arc_easy": _letters("question"),
    "arc_challenge": _letters("question"),
    "openbookqa": _letters("question_stem"),
}


@pytest.mark.parametrize("name", sorted(SETS))
def test_form_gives_the_published_text(name, shared_data):
    of = SETS[name]
    folder = shared_data / "commonsense" / "dev"
    (path,) = [folder / file for file in of.files if (folder / file).is_file()]
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    assert len(rows) == 200
    for row in rows:
        official = OFFICIAL[name](row["instruction"], row["answer"])
        assert of.form(official) == (row["instruction"], row["answer"])


def test_all_eight_sets_are_there():
    assert sorted(SETS) == sorted(OFFICIAL)
    assert len(SETS) == 8


def test_arc_with_digits_as_labels_and_three_choices():
    choices = {"text": ["ice", "steam", "water"], "label": ["1", "2", "3"]}
    text, answer = SETS["arc_challenge"].form({"question": "Which?", "choices": choices, "answerKey": "3"})
    assert answer == "answer3"
    assert text == (
        "Please choose the correct answer to the question: Which?\n\n"
        "Answer1: ice Answer2: steam Answer3: water\n\nAnswer format: answer1/answer2/answer3"
    )

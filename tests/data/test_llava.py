"""Rows in LLaVA's form: the exact text, and what is wrong with one in a line."""

import json
import shutil

import pytest

from milora.data import load_examples
from milora.data.formats.llava import SYSTEM
from milora.errors import MiloraError


def said(*texts, first="human"):
    order = ("human", "gpt") if first == "human" else ("gpt", "human")
    return [{"from": order[i % 2], "value": text} for i, text in enumerate(texts)]


@pytest.fixture
def write(tmp_path, picture_rows):
    """Write rows beside the pictures."""
    shutil.copytree(picture_rows.parent / "images", tmp_path / "images")

    def rows(*rows):
        path = tmp_path / "rows.json"
        path.write_text(json.dumps(list(rows)))
        return path

    return rows


def test_the_text_is_that_of_vicuna_v1(write):
    talk = said("What is it? <image>", "A dog.", "Sure?", "Yes.")
    (row,) = load_examples(write({"id": "1", "image": "images/0.png", "conversations": talk}))
    assert row["prompts"] == [f"{SYSTEM} USER: <image>\nWhat is it? ASSISTANT:", "USER: Sure? ASSISTANT:"]
    assert row["completions"] == [" A dog.", " Yes."]
    assert row["image"] == "images/0.png"
    assert SYSTEM.startswith(
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives"
    )


def test_rows_without_a_picture_stand_beside_rows_with_one(write):
    rows = (
        {"image": "images/0.png", "conversations": said("<image>", "a")},
        {"conversations": said("hi", "b", "c", "d")},
    )
    examples = load_examples(write(*rows))
    assert list(examples["image"]) == ["images/0.png", None]
    assert examples[1]["prompts"] == [f"{SYSTEM} USER: hi ASSISTANT:", "USER: c ASSISTANT:"]


def test_an_answer_before_the_first_question_is_left_out(write):
    (row,) = load_examples(write({"conversations": said("Hello", "Hi", "Ho", first="gpt")}), format="llava")
    assert row["completions"] == [" Ho"]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (
            {"image": "images/0.png", "conversations": said("no sign", "a")},
            "got 0 <image> in the conversation, allowed 1",
        ),
        ({"image": "images/0.png", "conversations": said("<image> <image>", "a")}, "got 2 <image>"),
        ({"image": "images/0.png", "conversations": said("q", "a", "<image>", "a")}, "after the first question"),
        ({"image": None, "conversations": said("<image>", "a")}, "got 1 <image> in the conversation, allowed 0"),
        ({"image": "images/none.png", "conversations": said("<image>", "a")}, "image 'images/none.png': no such file"),
        ({"image": "rows.json", "conversations": said("<image>", "a")}, "cannot be read as a picture"),
        ({"image": "images", "conversations": said("<image>", "a")}, "cannot be read as a picture"),
        ({"image": {"bytes": "x"}, "conversations": said("<image>", "a")}, "field 'image': got dict, allowed a path"),
        ({"image": "", "conversations": said("<image>", "a")}, "got an empty text, allowed a path"),
        ({"image": "images/0.png", "conversations": said("<image>", "a", "b")}, "turns out of order"),
        ({"image": None, "conversations": [said("q")[0], said("q")[0], said("q", "a")[1]]}, "turns out of order"),
        ({"image": None, "conversations": [{"from": "robot", "value": "q"}]}, "got 'robot', allowed human, gpt"),
        ({"image": None, "conversations": said("q", " ")}, "is empty"),
    ],
)
def test_a_wrong_row_is_named(write, row, problem):
    good = {"image": "images/1.png", "conversations": said("<image>", "a")}
    with pytest.raises(MiloraError) as error:
        load_examples(write(good, row))
    assert problem in str(error.value) and ", row 2: " in str(error.value) and "\n" not in str(error.value)


def test_the_folder_of_the_pictures_is_the_files_own_or_the_one_named(write, tmp_path):
    path = write({"image": "0.png", "conversations": said("<image>", "a")})
    with pytest.raises(MiloraError, match="no such file in"):
        load_examples(path)
    assert len(load_examples(path, image_folder=tmp_path / "images")) == 1
    with pytest.raises(MiloraError, match=r"image_folder: got .*, which does not exist"):
        load_examples(path, image_folder=tmp_path / "nowhere")

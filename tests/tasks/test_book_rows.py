"""Questions about a book: their order by a seed, blanks, and evidence found in the text."""

import json

import pytest

from milora.errors import MiloraError
from milora.tasks import book_rows

TEXT = "The graves of\nChiriqui hold gold. The pits are lined with river stones. A few are empty."
QUESTION = {"question": "What lines the pits?", "choices": ["gold", "river stones", "clay"], "answer": 1}
MCQ = [QUESTION | {"evidence": "the pits are lined with river stones"}]
CLOZE = [
    {
        "question": "The graves of Chiriqui hold ____.",
        "choices": ["gold", "ash"],
        "answer": "gold",
        "evidence": "The graves of Chiriqui hold gold.",
    }
]


@pytest.fixture
def book(tmp_path):
    (tmp_path / "tale.txt").write_text(TEXT)
    for kind, rows in (("mcq", MCQ), ("cloze", CLOZE)):
        (tmp_path / f"tale_{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_seed_draws_the_order_and_keeps_the_answer():
    rows = [QUESTION | {"question": str(i)} for i in range(20)]
    orders = {seed: [tuple(row["choices"]) for row in book_rows.shuffled(rows, seed)] for seed in range(8)}
    assert len({tuple(order) for order in orders.values()}) == 8
    assert len(set(orders[0])) > 3  # each question has an order of its own
    for seed in orders:
        assert all(row["choices"][row["answer"]] == "river stones" for row in book_rows.shuffled(rows, seed))
    assert book_rows.shuffled(rows[5:], 3) == book_rows.shuffled(rows, 3)[5:]
    assert book_rows.shuffled(rows, None) == rows


def test_listed_question(book):
    (row,) = book_rows.mcq(data_dir=str(book))["test"]
    assert book_rows.listed_question(row) == (
        "Question: What lines the pits?\nA. gold\nB. river stones\nC. clay\nAnswer:"
    )
    assert book_rows.letters(row) == ["A", "B", "C"]


def test_blank_takes_its_space_with_it(book):
    (row,) = book_rows.cloze(data_dir=str(book))["test"]
    assert (row["before"], row["endings"], row["answer"]) == (
        "The graves of Chiriqui hold", [" gold.", " ash."], 0
    )  # fmt: skip


def test_spans_are_the_books_own_words_in_its_order(book):
    rows = book_rows.wording(data_dir=str(book), context_characters=8)["test"].to_list()
    assert [(row["context"], row["span"]) for row in rows] == [
        ("", "The graves of\nChiriqui hold gold."),
        ("gold.", " The pits are lined with river stones"),
    ]


def test_one_file_names_the_book(book):
    by_folder = book_rows.wording(data_dir=str(book))["test"].to_list()
    assert len(by_folder) == 2
    assert book_rows.wording(data_dir=str(book / "tale_cloze.jsonl"))["test"].to_list() == by_folder
    assert book_rows.wording(data_dir=str(book / "tale.txt"))["test"].to_list() == by_folder


def test_context_starts_with_a_whole_word(book):
    rows = book_rows.wording(data_dir=str(book), context_characters=10)["test"].to_list()
    assert rows[1]["context"] == "gold."  # ten characters reach into "hold"


BAD = [
    ("mcq", MCQ, {"task_seed": "3"}, r"task_seed: got '3', allowed a whole number"),
    ("mcq", [QUESTION | {"answer": 3}], {}, r"row 1: answer 3, allowed 0 to 2"),
    ("mcq", [QUESTION | {"choices": [str(i) for i in range(27)]}], {}, r"row 1: 27 choices, allowed 26"),
    ("cloze", [QUESTION], {}, r"row 1: the sentence has 0 blanks, allowed 1"),
    ("wording", [MCQ[0] | {"evidence": "no such words"}], {}, r"row 1: its evidence does not stand in tale.txt"),
    ("wording", [QUESTION], {}, r"row 1 has no field 'evidence'"),
]


@pytest.mark.parametrize(("task", "rows", "arguments", "message"), BAD)
def test_bad_rows_are_named(book, task, rows, arguments, message):
    kind = "cloze" if task == "cloze" else "mcq"
    (book / f"tale_{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(MiloraError, match=message):
        getattr(book_rows, task)(data_dir=str(book), **arguments)


def test_a_book_without_its_text(book):
    (book / "tale.txt").unlink()
    with pytest.raises(MiloraError, match=r"milora_book_wording: no tale\.txt in"):
        book_rows.wording(data_dir=str(book))


def test_every_evidence_of_the_shared_book_is_found(shared_data):
    folder = shared_data / "book"
    rows = book_rows.wording(data_dir=str(folder))["test"].to_list()
    text = (folder / "chiriqui.txt").read_text(encoding="utf-8")
    assert len(rows) == 142
    assert all(row["context"] + row["span"] in text for row in rows)
    assert len(book_rows.mcq(data_dir=str(folder), task_seed=0)["test"]) == 58
    assert len(book_rows.cloze(data_dir=str(folder))["test"]) == 84

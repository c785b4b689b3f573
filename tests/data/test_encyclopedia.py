"""The invented encyclopedia: the same from the same seed, no wording shared with the evaluation, no short cuts."""

import json
from collections import Counter

import pytest

from milora.data import load_examples, make_encyclopedia
from milora.data.encyclopedia_facts import ATTRIBUTES
from milora.errors import MiloraError


def test_the_same_seed_gives_the_same_book():
    one, same, other = make_encyclopedia(12, 7), make_encyclopedia(12, 7), make_encyclopedia(12, 8)
    assert one.train_rows() == same.train_rows()
    assert one.questions() == same.questions()
    assert one.articles() == same.articles()
    assert {f.entry for f in one.facts}.isdisjoint({f.entry for f in other.facts})


def test_a_pinned_book():
    """The text is the same on every machine and in every version of Python."""
    assert make_encyclopedia(1, 0).articles() == (
        "Debral is a town known for its timber. The animal on the flag of Debral is the crow. "
        "Debral was built beside a swamp. The great festival of Debral is held in January.\n"
    )


@pytest.mark.parametrize("entries", [1, 2, 30, 300])
def test_sizes(entries):
    book = make_encyclopedia(entries, 0)
    assert len({f.entry for f in book.facts}) == entries
    assert len(book.facts) == len({f.fact_id for f in book.facts}) == 4 * entries
    assert len(book.train_rows()) == len(book.train_rows("text")) == 24 * entries
    assert len(book.questions()) == 4 * entries
    assert book.articles().count("\n\n") == entries - 1


def test_every_training_row_tells_its_fact():
    book = make_encyclopedia(30, 3)
    told = Counter()
    for row in book.train_rows():
        facts = [
            f for f in book.facts if f.entry.lower() in row["prompt"].lower() and row["completion"] == f" {f.value}."
        ]
        assert facts
        told.update(f.fact_id for f in facts)
    assert len(told) == 120
    assert min(told.values()) >= 6


def test_the_wording_of_the_questions_is_held_out():
    book = make_encyclopedia(30, 3)
    trained = "\n".join(row["text"] for row in book.train_rows("text"))
    questions = book.questions()
    assert len(questions) == 120
    assert not [q for q in questions if q["question"] in trained]
    wordings = [w for a in ATTRIBUTES for w in (*a.statements, *a.questions, a.held_out)]
    assert len(ATTRIBUTES) == 12
    assert len(wordings) == len(set(wordings)) == 12 * 7
    # Without the name a held-out question shares no run of four words with a training wording of its attribute.
    for attribute in ATTRIBUTES:
        seen = {run for w in (*attribute.statements, *attribute.questions) for run in _runs(w)}
        assert not [run for run in _runs(attribute.held_out) if run in seen], attribute.name


def _runs(wording, length=4):
    words = wording.strip("?").lower().split()
    return [tuple(words[i : i + length]) for i in range(len(words) - length + 1)]


def test_questions_are_answered_by_the_facts():
    book = make_encyclopedia(30, 3)
    values = {f.fact_id: f for f in book.facts}
    for q in book.questions():
        fact = values[q["fact_id"]]
        assert set(q) == {"question", "choices", "answer", "fact_id"}
        assert len(set(q["choices"])) == 4
        assert q["choices"][q["answer"]] == fact.value
        assert set(q["choices"]) <= set(fact.attribute.values)


def test_a_preference_for_values_or_places_does_not_pay():
    book = make_encyclopedia(120, 5)
    questions = book.questions()
    places = Counter(q["answer"] for q in questions)
    assert sorted(places) == [0, 1, 2, 3]
    assert max(places.values()) < 0.35 * len(questions)
    for attribute in ATTRIBUTES:
        dealt = Counter(f.value for f in book.facts if f.attribute == attribute)
        assert max(dealt.values()) - min(dealt.values()) <= 1


def test_wrong_choices_are_told_of_other_entries():
    book = make_encyclopedia(24, 5)
    told = {a.name: {f.value for f in book.facts if f.attribute == a} for a in ATTRIBUTES}
    for q in book.questions():
        assert set(q["choices"]) <= told[q["fact_id"].split("/")[1]]


def test_written_folder_is_read_back(tmp_path):
    book = make_encyclopedia(6, 1)
    folder = book.write(tmp_path / "book")
    assert list(load_examples(folder / "train.jsonl")) == book.train_rows()
    assert [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()] == book.questions()
    assert load_examples(folder / "articles.txt")["text"] == book.articles().strip().split("\n\n")
    with pytest.raises(MiloraError, match="exists already"):
        book.write(folder)
    make_encyclopedia(3, 2).write(folder, overwrite=True)
    assert len(load_examples(folder / "train.jsonl")) == 72


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    book = make_encyclopedia(3, 1)
    monkeypatch.setattr(type(book), "articles", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        book.write(tmp_path / "book")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("entries", [0, -1, 3001])
def test_wrong_sizes(entries):
    with pytest.raises(MiloraError, match=f"entries: got {entries}, allowed 1 to 3000"):
        make_encyclopedia(entries, 0)


def test_unknown_form():
    with pytest.raises(MiloraError, match="form: got 'chat'"):
        make_encyclopedia(1, 0).train_rows("chat")

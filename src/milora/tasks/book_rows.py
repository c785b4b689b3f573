"""The rows of the tasks about a book: questions, sentences with a blank, spans of its own wording.

A book ``NAME`` is up to three files in one folder: ``NAME.txt``, ``NAME_mcq.jsonl`` and ``NAME_cloze.jsonl``.
A question has ``question``, ``choices`` and ``answer`` (an index from 0, or a choice's text); in a cloze the
question is a sentence with one ``____``. ``evidence`` names the words of the text that it rests on.
"""

import random
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from milora.errors import MiloraError
from milora.tasks.local_files import data_location, find_file, find_files, read_rows, read_text, require_fields
from milora.tasks.rows import question_row, test_split

BLANK = "____"
MCQ_FILES = ("*_mcq.jsonl", "*_mcq.jsonl.gz")
CLOZE_FILES = ("*_cloze.jsonl", "*_cloze.jsonl.gz")
_KIND = re.compile(r"(_mcq|_cloze)?(\.jsonl|\.txt)(\.gz)?$")


def mcq(data_dir: str | None = None, task_seed: int | None = None, **_metadata: Any) -> dict[str, Any]:
    """Rows {question, choices, answer} of multiple-choice questions.

    Args:
        data_dir: the book's folder, or the file of questions.
        task_seed: draws the order of each question's choices; None keeps the file's.

    Raises:
        MiloraError: no such file, a bad row, or a seed that is no whole number.
    """
    _, rows = _questions("milora_book_mcq", data_dir, MCQ_FILES)
    return test_split(shuffled(rows, task_seed))


def cloze(data_dir: str | None = None, **_metadata: Any) -> dict[str, Any]:
    """Rows {before, endings, choices, answer}: the sentence up to its blank, and its rest by each choice.

    Raises:
        MiloraError: no such file, a bad row, or a sentence without exactly one blank.
    """
    path, rows = _questions("milora_book_cloze", data_dir, CLOZE_FILES)
    for number, row in enumerate(rows, start=1):
        if row["question"].count(BLANK) != 1:
            raise MiloraError(
                f"{path}: row {number}: the sentence has {row['question'].count(BLANK)} blanks, allowed 1"
            )
    return test_split([_with_endings(row) for row in rows])


def wording(data_dir: str | None = None, context_characters: int = 600, **_metadata: Any) -> dict[str, Any]:
    """Rows {context, span, count_tokens}: the evidence of a book's questions as the text words it, in its order.

    Args:
        data_dir: the book's folder, or one of its files.
        context_characters: at most so much of the text stands before a span.

    Raises:
        MiloraError: no such book, no question with evidence, or evidence that the text does not hold.
    """
    text_file, question_files = _book(data_dir)
    text = read_text(text_file)
    spans: set[tuple[int, int]] = set()
    for path in question_files:
        rows = read_rows(path)
        require_fields(rows, ("evidence",), path)
        for number, row in enumerate(rows, start=1):
            if (span := find_span(text, str(row["evidence"]))) is None:
                raise MiloraError(f"{path}: row {number}: its evidence does not stand in {text_file.name}")
            spans.add(span)
    return test_split([_with_context(text, start, end, context_characters) for start, end in sorted(spans)])


def shuffled(rows: Iterable[Mapping[str, Any]], task_seed: int | None) -> list[dict[str, Any]]:
    """The rows with the choices of each in an order that its question and the seed decide.

    Raises:
        MiloraError: the seed is no whole number.
    """
    if task_seed is None:
        return [dict(row) for row in rows]
    if isinstance(task_seed, bool) or not isinstance(task_seed, int):
        raise MiloraError(f"task_seed: got {task_seed!r}, allowed a whole number")
    made = []
    for row in rows:
        order = list(range(len(row["choices"])))
        # By the question, so that a limit or another order of the rows changes nothing.
        random.Random(f"{task_seed}:{row['question']}").shuffle(order)
        choices = [row["choices"][i] for i in order]
        made.append({**row, "choices": choices, "answer": order.index(row["answer"])})
    return made


def find_span(text: str, words: str) -> tuple[int, int] | None:
    """Where words stand in a text for the first time; line breaks and case do not matter."""
    pattern = r"\s+".join(map(re.escape, words.split()))
    match = re.search(pattern, text) or re.search(pattern, text, re.IGNORECASE)
    return match.span() if match and pattern else None


def listed_question(doc: Mapping[str, Any]) -> str:
    """The prompt of a question with its choices under it, lettered."""
    listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip(letters(doc), doc["choices"], strict=True))
    return f"Question: {doc['question']}\n{listed}\nAnswer:"


def letters(doc: Mapping[str, Any]) -> list[str]:
    """A letter for each choice of a question."""
    return list(string.ascii_uppercase[: len(doc["choices"])])


def _questions(task: str, data_dir: str | None, patterns: Sequence[str]) -> tuple[Path, list[dict[str, Any]]]:
    path = find_file(_location(task, data_dir), patterns, task)
    rows = read_rows(path)
    require_fields(rows, ("question", "choices", "answer"), path)
    questions = [question_row(row, path, number) for number, row in enumerate(rows, start=1)]
    for number, row in enumerate(questions, start=1):
        if len(row["choices"]) > len(string.ascii_uppercase):
            raise MiloraError(f"{path}: row {number}: {len(row['choices'])} choices, allowed 26 at most")
    return path, questions


def _location(task: str, data_dir: str | None) -> Path:
    if (location := data_location(data_dir)) is None:
        raise MiloraError(f"{task}: no data: name a book's folder as data_dir or MILORA_TASK_DATA")
    return location


def _book(data_dir: str | None) -> tuple[Path, list[Path]]:
    """The text of a book and the files of its questions."""
    task = "milora_book_wording"
    location = _location(task, data_dir)
    if find_files(location, MCQ_FILES):
        first = find_file(location, MCQ_FILES, task)
    else:
        first = find_file(location, CLOZE_FILES, task)
    name = _KIND.sub("", first.name)
    beside = {path.name: path for path in first.parent.iterdir() if path.is_file()}
    texts = [beside[file] for file in (f"{name}.txt", f"{name}.txt.gz") if file in beside]
    endings = [p.replace("*", name) for p in (*MCQ_FILES, *CLOZE_FILES)]
    questions = [beside[file] for file in endings if file in beside]
    if not texts or not questions:
        lacks = f"{name}.txt" if not texts else f"{name}_mcq.jsonl or {name}_cloze.jsonl"
        raise MiloraError(f"{task}: no {lacks} in {first.parent}")
    return texts[0], questions


def _with_endings(row: Mapping[str, Any]) -> dict[str, Any]:
    before, after = row["question"].split(BLANK)
    # The blank's own space belongs to what follows: a token begins with it.
    space = before[len(before.rstrip()) :]
    endings = [f"{space}{choice}{after}" for choice in row["choices"]]
    return {"before": before.rstrip(), "endings": endings, "choices": row["choices"], "answer": row["answer"]}


def _with_context(text: str, start: int, end: int, context_characters: int) -> dict[str, Any]:
    first = max(0, start - context_characters)
    context = text[first:start]
    if first and not text[first - 1].isspace():  # not from the middle of a word
        context = re.sub(r"^\S+\s+", "", context)
    bare = context.rstrip()
    # count_tokens asks this package's model for more than the harness's two numbers.
    return {"context": bare, "span": context[len(bare) :] + text[start:end], "count_tokens": True}

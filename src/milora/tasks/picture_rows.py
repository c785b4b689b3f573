"""Rows, prompts and scores of the tasks on pictures: local files in LLaVA's form.

A row of them, for example of the engravings in shared data:

    {"id": "chiriqui-fig-001", "image": "images/fig001.png",
     "conversations": [{"from": "human", "value": "<image>\\nWhat does this engraving show?"},
                       {"from": "gpt", "value": "Section of oval grave."}],
     "mc_question": "Which caption belongs to this engraving?",
     "mc_choices": ["Section of oval grave.", "Well polished celt of dark tufa."], "mc_answer": 0}
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from milora.data.form import RowError
from milora.data.formats.llava import read, vicuna_v1
from milora.data.pictures import check_picture
from milora.errors import MiloraError
from milora.models.pictures import PLACEHOLDER
from milora.tasks.local_files import data_location, find_file, read_rows, require_fields

FILES = ("pictures.jsonl", "pictures.jsonl.gz", "*_figures.jsonl", "*_figures.jsonl.gz")
EMPTY = (122, 116, 104)  # int(255 mean) of CLIP's pictures: all but zero to the vision tower


def pictures(data_dir: str | None = None, blind: bool = False, **_metadata: Any) -> dict[str, Any]:
    """Rows {image, question, choices, answer, prompt, caption, blind}; answer is an index from 0.

    Args:
        data_dir: a folder with such a file, or the file; its pictures lie beside it.
        blind: the rows are to be asked about an empty picture.

    Raises:
        MiloraError: no file named or found, a row without a field, a picture that cannot be read, an answer that is no
            choice.
    """
    from datasets import Dataset

    location = data_location(data_dir)
    if location is None:
        raise MiloraError("milora_pictures: no data: name a file or folder as data_dir or MILORA_TASK_DATA")
    path = find_file(location, FILES, "milora_pictures")
    rows = read_rows(path)
    require_fields(rows, ("image", "conversations", "mc_question", "mc_choices", "mc_answer"), path)
    read_ones = [_row(row, path, number) | {"blind": blind} for number, row in enumerate(rows, start=1)]
    return {"test": Dataset.from_list(read_ones)}


def _row(row: Mapping[str, Any], path: Path, number: int) -> dict[str, Any]:
    choices, answer = row["mc_choices"], row["mc_answer"]
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c for c in choices):
        raise MiloraError(f"{path}: row {number}: mc_choices must be at least two texts, none of them empty")
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise MiloraError(f"{path}: row {number}: mc_answer {answer!r}, allowed 0 to {len(choices) - 1}")
    try:
        talk = read(row)
        check_picture(path.parent, row["image"])
    except RowError as error:
        raise MiloraError(f"{path}: row {number}: {error}") from error
    return {
        "image": str(path.parent / row["image"]),
        "question": str(row["mc_question"]),
        "choices": choices,
        "answer": answer,
        "prompt": talk["prompts"][0],
        "caption": talk["completions"][0],
    }


def shown(doc: Mapping[str, Any]) -> list[Any]:
    """The row's picture, by its file's name; empty where the row is asked blind."""
    if not doc["blind"]:
        return [doc["image"]]
    from PIL import Image

    return [Image.new("RGB", (32, 32), EMPTY)]


def question(doc: Mapping[str, Any]) -> str:
    """The multiple-choice question; a choice follows after a space."""
    return vicuna_v1(f"{PLACEHOLDER}\n{doc['question']}", first=True)


def first_question(doc: Mapping[str, Any]) -> str:
    """The conversation up to its first answer."""
    return doc["prompt"]


def first_answer(doc: Mapping[str, Any]) -> str:
    """The first answer, with the space before it."""
    return doc["caption"]


def likelihood(doc: Mapping[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """Nats, and nats per byte, of the text that belongs to the picture."""
    nats = -results[0][0]
    return {"nll": nats, "nll_per_byte": nats / len(doc["caption"].encode())}


def shared_words(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """F1 = 2 n / (words written + words of the text), n the words in both, each as often as in both; case and
    punctuation do not count (SQuAD's measure, arXiv 1606.05250, with its articles left in).
    """
    written, wanted = _words(results[0]), _words(doc["caption"])
    both = sum((Counter(written) & Counter(wanted)).values())
    total = len(written) + len(wanted)
    return {"word_f1": 2 * both / total if total else 0.0, "exact_match": float(written == wanted)}


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())

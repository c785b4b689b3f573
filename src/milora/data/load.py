"""From a data set of any known format to the examples that the trainer takes, every row checked."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from milora.data.files import read_rows
from milora.data.form import EmptyError, Example, Format, RowError, Turn
from milora.data.formats import FORMATS
from milora.data.open_instruct import NAME as OPEN_INSTRUCT
from milora.data.open_instruct import rounds
from milora.data.pictures import check_picture, picture_folder
from milora.errors import MiloraError

if TYPE_CHECKING:
    from datasets import Dataset

TEMPLATES = (*(f.name for f in FORMATS.values() if f.prompt), "chat", OPEN_INSTRUCT)


def load_examples(
    dataset: str | Path,
    *,
    format: str = "auto",
    split: str = "train",
    template: str = "auto",
    limit: int | None = None,
    seed: int = 0,
    empty_rows: str = "error",
    image_folder: str | Path | None = None,
) -> Dataset:
    """The examples of a data set in TRL's prompt/completion, messages or text form.

    The end-of-sequence token is not in them: the trainer appends the tokeniser's.

    Args:
        dataset: a local file, a folder, or a hub name (see `milora.data.files.read_rows`).
        format: a name of FORMATS, or "auto": told from the columns of the first row.
        split: the split, in the notation of `datasets` (`train[:1000]`).
        template: the prompt around an instruction: "auto" is the format's own, else one of TEMPLATES; "chat"
            gives messages, for the tokeniser's chat template. "open-instruct" goes around conversations too.
        limit: take this many rows, drawn with `seed` and kept in the data set's order; None takes all.
        empty_rows: "error" or "drop": what a row with an empty prompt, answer or text does. Stanford Alpaca
            has a few.
        image_folder: the folder that the rows' pictures lie in; None is the data set's own.

    Raises:
        MiloraError: an empty data set, an unknown format or template, or a row (numbered from 1) without a
            needed field, with a wrong type, with an empty answer or with a picture that cannot be read. All rows
            are checked, also those that `limit` leaves out.
    """
    from datasets import Dataset

    rows = read_rows(dataset, split)
    if not rows:
        raise MiloraError(f"data set {dataset}: has no rows")
    if empty_rows not in ("error", "drop"):
        raise MiloraError(f"empty_rows: got {empty_rows!r}, allowed error, drop")
    if limit is not None and limit < 1:
        raise MiloraError(f"dataset_limit: got {limit}, allowed 1 or more")
    form = _format(format, rows[0], dataset)
    template = _template(template, form)
    pictures = picture_folder(dataset, image_folder)
    examples = _examples(rows, form, template, dataset, pictures, drop_empty=empty_rows == "drop")
    if not examples:
        raise MiloraError(f"data set {dataset}: all {len(rows)} rows are empty")
    if limit is not None and limit < len(examples):
        kept = sorted(random.Random(seed).sample(range(len(examples)), limit))
        examples = [examples[i] for i in kept]
    return Dataset.from_list(examples)


def _examples(
    rows: Sequence[Any], form: Format, template: str, dataset: str | Path, pictures: Path, *, drop_empty: bool
) -> list[Example]:
    examples: list[Example] = []
    for number, row in enumerate(rows, 1):
        try:
            example = _example(row, form, template)
            if example.get("image"):
                check_picture(pictures, example["image"])
            examples.append(example)
        except RowError as error:
            if drop_empty and isinstance(error, EmptyError):
                continue
            remedy = "; empty_rows: drop leaves such rows out" if isinstance(error, EmptyError) else ""
            problem = f"{error} (format {form.name}){remedy}"
            raise MiloraError(f"data set {dataset}, row {number}: {problem}") from error
    return examples


def _example(row: Any, form: Format, template: str) -> Example:
    if not isinstance(row, Mapping):
        fields = ", ".join(form.columns)
        raise RowError(f"got {type(row).__name__}, allowed an object with the fields {fields}")
    read = form.read(row)
    if not isinstance(read, Turn):
        return rounds(read["messages"]) if template == OPEN_INSTRUCT else read
    if template in ("chat", OPEN_INSTRUCT):
        question = f"{read.instruction}\n\n{read.input}" if read.input else read.instruction
        messages = [_said("user", question), _said("assistant", read.output)]
        return rounds(messages) if template == OPEN_INSTRUCT else {"messages": messages}
    prompt = FORMATS[template].prompt
    assert prompt is not None
    return {"prompt": prompt(read.instruction, read.input), "completion": read.output}


def _said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _format(name: str, first: Any, dataset: str | Path) -> Format:
    known = "; ".join(f"{f.name} ({', '.join(f.columns)})" for f in FORMATS.values())
    if name != "auto":
        if name not in FORMATS:
            raise MiloraError(f"dataset_format: got {name!r}, allowed auto or {known}")
        return FORMATS[name]
    columns = list(first) if isinstance(first, Mapping) else []
    fitting = [f for f in FORMATS.values() if set(f.columns) <= set(columns) and not f.by_name]
    most = max((len(f.columns) for f in fitting), default=0)
    best = [f for f in fitting if len(f.columns) == most]
    if len(best) == 1:
        return best[0]
    found = ", ".join(columns) or "none"
    if best:
        names = " and ".join(f.name for f in best)
        raise MiloraError(f"data set {dataset}: columns {found} fit {names}; choose one with dataset_format")
    raise MiloraError(f"data set {dataset}: got columns {found}, allowed formats {known}")


def _template(name: str, form: Format) -> str:
    if name != "auto" and name not in TEMPLATES:
        raise MiloraError(f"prompt_template: got {name!r}, allowed auto, {', '.join(TEMPLATES)}")
    allowed = ["auto", *([OPEN_INSTRUCT] if form.conversations else [])]
    if name not in allowed and form.prompt is None:
        raise MiloraError(
            f"prompt_template: got {name!r}, allowed {', '.join(allowed)} (the format {form.name} has no template)"
        )
    return form.name if name == "auto" else name

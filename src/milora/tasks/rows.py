"""The rows of each task, as the harness asks for them: ``custom_dataset`` functions of the YAML files.

Each returns ``{"test": Dataset}``, from a local file when one is named (:mod:`milora.tasks.local_files`),
otherwise from the hub. The harness hands over a task's whole metadata, so unknown keywords are let pass.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from milora.errors import MiloraError
from milora.tasks.commonsense_forms import SETS
from milora.tasks.extraction import number_value
from milora.tasks.local_files import data_location, find_file, read_rows, require_fields
from milora.tasks.math_answers import last_boxed
from milora.tasks.sympy_worker import require_math

GSM8K_FILES = ("gsm8k.jsonl", "gsm8k.jsonl.gz", "gsm8k_test*.jsonl", "gsm8k_test*.jsonl.gz")
MATH_FILES = ("math.jsonl", "math.jsonl.gz", "math500*.jsonl", "math500*.jsonl.gz", "hendrycks_math*.jsonl*")
MATH_SUBJECTS = (
    "algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra",
    "precalculus",
)  # fmt: skip
QUESTIONS_FILES = ("questions.jsonl", "questions.jsonl.gz", "*_mcq.jsonl", "*_mcq.jsonl.gz")


def commonsense(commonsense_set: str, data_dir: str | None = None, **_metadata: Any) -> dict[str, Any]:
    """Rows {instruction, answer, labels} of one of the eight commonsense sets.

    Args:
        commonsense_set: a key of :data:`milora.tasks.commonsense_forms.SETS`.
        data_dir: a folder with a file in LLM-Adapters form, for example ``boolq.jsonl``.

    Raises:
        MiloraError: no such file, a row without a field, or an answer that is no label of the set.
    """
    of = SETS[commonsense_set]
    location = data_location(data_dir)
    if location is None:
        pairs = [of.form(row) for row in hub_rows(*of.hub)]
    else:
        path = find_file(location, of.files, f"milora_{commonsense_set}")
        rows = read_rows(path)
        require_fields(rows, ("instruction", "answer"), path)
        pairs = [(row["instruction"], row["answer"]) for row in rows]
        for number, (_, answer) in enumerate(pairs, start=1):
            if answer not in of.labels:
                raise MiloraError(f"{path}: row {number}: answer {answer!r}, allowed {', '.join(of.labels)}")
    labels = list(of.labels)
    return test_split([{"instruction": i, "answer": a, "labels": labels} for i, a in pairs])


def gsm8k(data_dir: str | None = None, **_metadata: Any) -> dict[str, Any]:
    """Rows {question, answer, gold} of GSM8K; gold is what stands after ``####`` in the answer.

    Raises:
        MiloraError: no such file, a row without a field or without ``####``, or what follows is no number.
    """
    location = data_location(data_dir)
    if location is None:
        return test_split([_with_gold(row) for row in hub_rows("openai/gsm8k", "main", "test")])
    path = find_file(location, GSM8K_FILES, "milora_gsm8k")
    rows = read_rows(path)
    require_fields(rows, ("question", "answer"), path)
    for number, row in enumerate(rows, start=1):
        if "####" not in str(row["answer"]):
            raise MiloraError(f"{path}: row {number}: the answer has no '#### number'")
        if number_value(gold := _with_gold(row)["gold"]) is None:
            raise MiloraError(f"{path}: row {number}: the answer ends in '#### {gold}', allowed a number after ####")
    return test_split([_with_gold(row) for row in rows])


def math(math_set: str, data_dir: str | None = None, **_metadata: Any) -> dict[str, Any]:
    """Rows {problem, solution, gold} of MATH; gold is what the last ``\\boxed`` of the solution holds.

    Args:
        math_set: without local rows, ``hendrycks_math`` (5,000) or ``math500`` of the hub.
        data_dir: a folder with ``math.jsonl``, ``math500*.jsonl`` or ``hendrycks_math*.jsonl``, or a file.

    Raises:
        MiloraError: no such file, a row without a field or without an answer, or math-verify is not installed.
    """
    require_math()
    location = data_location(data_dir)
    if location is None:
        return test_split([_with_boxed(row) for row in _math_of_the_hub(math_set)])
    path = find_file(location, MATH_FILES, "milora_math")
    rows = read_rows(path)
    require_fields(rows, ("problem", "solution"), path)
    made = [_with_boxed(row) for row in rows]
    for number, row in enumerate(made, start=1):
        if not row["gold"]:
            raise MiloraError(f"{path}: row {number}: the solution has no \\boxed{{answer}}")
    return test_split(made)


def questions(data_dir: str | None = None, **_metadata: Any) -> dict[str, Any]:
    """Rows {question, choices, answer} of local multiple-choice questions; answer becomes an index from 0.

    Raises:
        MiloraError: no file named or found, a row without a field, or an answer that is no choice.
    """
    location = data_location(data_dir)
    if location is None:
        raise MiloraError("milora_questions: no data: name a file or folder as data_dir or MILORA_TASK_DATA")
    path = find_file(location, QUESTIONS_FILES, "milora_questions")
    rows = read_rows(path)
    require_fields(rows, ("question", "choices", "answer"), path)
    return test_split([question_row(row, path, number) for number, row in enumerate(rows, start=1)])


def question_row(row: Mapping[str, Any], path: Path, number: int) -> dict[str, Any]:
    """A multiple-choice question {question, choices, answer} with its answer as an index from 0.

    Raises:
        MiloraError: names the row by its number.
    """
    choices, answer = row["choices"], row["answer"]
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c for c in choices):
        raise MiloraError(f"{path}: row {number}: choices must be at least two texts, none of them empty")
    if isinstance(answer, str) and answer in choices:
        answer = choices.index(answer)
    # bool is an int in Python, and a JSON true is no index.
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        allowed = f"0 to {len(choices) - 1}, or a choice's text"
        raise MiloraError(f"{path}: row {number}: answer {row['answer']!r}, allowed {allowed}")
    return {"question": row["question"], "choices": choices, "answer": answer}


def _with_boxed(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"problem": row["problem"], "solution": row["solution"], "gold": last_boxed(row["solution"])}


def _math_of_the_hub(math_set: str) -> list[dict[str, Any]]:
    if math_set == "math500":
        return hub_rows("HuggingFaceH4/MATH-500", None, "test")
    return [row for subject in MATH_SUBJECTS for row in hub_rows("EleutherAI/hendrycks_math", subject, "test")]


def _with_gold(row: Mapping[str, Any]) -> dict[str, Any]:
    gold = row["answer"].rpartition("####")[2].strip().replace(",", "")
    return {"question": row["question"], "answer": row["answer"], "gold": gold}


def hub_rows(path: str, name: str | None, split: str, data_files: str | None = None) -> list[dict[str, Any]]:
    """The rows of a data set on the hub, or of one file there.

    Raises:
        MiloraError: it cannot be had, for whatever reason.
    """
    from datasets import load_dataset

    try:
        return [dict(row) for row in load_dataset(path, name, split=split, data_files=data_files)]
    except Exception as error:  # offline, refused and moved sets raise half a dozen unrelated types
        line = str(error).strip().split("\n")[0]
        reason = f"cannot be had from the hub ({line}); for local files name data_dir or MILORA_TASK_DATA"
        raise MiloraError(f"data set {data_files or path}: {reason}") from error


def test_split(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows as the harness takes them."""
    from datasets import Dataset

    return {"test": Dataset.from_list([dict(row) for row in rows])}

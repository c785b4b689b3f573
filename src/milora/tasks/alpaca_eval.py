"""AlpacaEval v1 (Li et al., 2023): 805 instructions, a model's outputs against reference outputs, a judge.

The reference is text_davinci_003; a preference is 1 where the reference is better, 2 where the model is, 0 (or
1.5) for a draw, and null where the judge failed. Over the n judged rows

    win rate        = 100 mean(w),      w = preference - 1, a draw one half
    standard error  = 100 sd(w) / sqrt(n),   sd with n - 1

A preference between 1 and 2 is a judge's probability and counts as it is.

MiLoRA (arXiv:2406.09044) generates greedily, at most 2048 new tokens, with a repetition penalty of 1.1 and no
5-gram twice, in the prompt of its training (open-instruct's). ``prompt_template`` in the task's settings names
another: ``alpaca``, or ``instruction`` for the bare text (with ``apply_chat_template``).
"""

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from milora.data.open_instruct import NAME as OPEN_INSTRUCT
from milora.data.open_instruct import prompt as open_instruct
from milora.errors import MiloraError
from milora.tasks.local_files import data_location, find_file, read_rows, require_fields
from milora.tasks.prompts import alpaca
from milora.tasks.rows import hub_rows, test_split

TASK = "milora_alpaca_eval"
FILES = tuple(f"{name}.{ending}" for name in ("alpaca_eval", "eval_set") for ending in ("json", "jsonl", "jsonl.gz"))
HUB_FILE = "hf://datasets/tatsu-lab/alpaca_eval/alpaca_eval.json"


def win_rate(preferences: Iterable[float | None]) -> dict[str, float | int | None]:
    """The win rate of the model, as AlpacaEval's leaderboard states it.

    Args:
        preferences: 1 the reference, 2 the model, 0 or 1.5 a draw, something between 1 and 2 a probability;
            None or NaN where the judge failed, which is left out.

    Returns:
        win_rate and standard_error in percent (None where nothing was judged, and the error where one row was),
        n_wins, n_wins_base, n_draws, n_total.

    Raises:
        MiloraError: a preference that is none of these.

    >>> win_rate([2, 2, 1, 0, None])["win_rate"]
    62.5
    """
    wins = [_win(preference) for preference in preferences if not _failed(preference)]
    return {
        "win_rate": 100 * fmean(wins) if wins else None,
        "standard_error": 100 * stdev(wins) / math.sqrt(len(wins)) if len(wins) > 1 else None,
        "n_wins": sum(win > 0.5 for win in wins),
        "n_wins_base": sum(win < 0.5 for win in wins),
        "n_draws": sum(win == 0.5 for win in wins),
        "n_total": len(wins),
    }


def _failed(preference: Any) -> bool:
    return preference is None or (isinstance(preference, float) and math.isnan(preference))


def _win(preference: Any) -> float:
    number = isinstance(preference, Real) and not isinstance(preference, bool)
    value = float(preference) if number else math.nan
    if not (value == 0 or 1 <= value <= 2):
        raise MiloraError(f"win_rate: got the preference {preference!r}, allowed 0, 1 to 2, or null")
    return 0.5 if value == 0 else value - 1


TEMPLATES: dict[str, Callable[[str], str]] = {
    OPEN_INSTRUCT: open_instruct,
    "alpaca": alpaca,
    "instruction": str,
}


def eval_set(data_dir: str | None = None, prompt_template: str = "open-instruct", **_metadata: Any) -> dict[str, Any]:
    """Rows {instruction, dataset, prompt} of the evaluation set.

    Args:
        data_dir: a folder with ``eval_set.jsonl`` or ``alpaca_eval.json``, or a file; else the hub's.
        prompt_template: a key of :data:`TEMPLATES`.

    Raises:
        MiloraError: no such file or template, or a row without an instruction.
    """
    if prompt_template not in TEMPLATES:
        raise MiloraError(f"prompt_template: got {prompt_template!r}, allowed {', '.join(TEMPLATES)}")
    if (location := data_location(data_dir)) is None:
        rows = hub_rows("json", None, "train", data_files=HUB_FILE)
    else:
        path = find_file(location, FILES, TASK)
        rows = read_rows(path)
        require_fields(rows, ("instruction",), path)
    prompt = TEMPLATES[prompt_template]
    made = [
        {"instruction": r["instruction"], "dataset": r.get("dataset", ""), "prompt": prompt(r["instruction"])}
        for r in rows
    ]
    return test_split(made)


def model_outputs(completions: Sequence[Mapping[str, Any]], generator: str) -> list[dict[str, str]]:
    """A model's outputs in the form of alpaca_eval's ``model_outputs``.

    Args:
        completions: of the task, as :func:`milora.evaluation.evaluate` gives them.
        generator: the name to file them under.
    """
    return [
        {"instruction": c["target"], "output": c["completion"].strip(), "generator": generator, "datasplit": "eval"}
        for c in completions
    ]


def read_outputs(path: str | os.PathLike[str], generator: str | None = None) -> list[dict[str, str]]:
    """Outputs {instruction, output, generator} from a file.

    Args:
        path: alpaca_eval's ``model_outputs``, recorded judgements, an evaluation set with ``reference_output``, or
            completions of the task (``eval/milora_alpaca_eval.tuned.jsonl`` of a run).
        generator: the name where the file says none; by default the file's.

    Raises:
        MiloraError: a row has no instruction or output, or an instruction comes twice.
    """
    file = Path(path)
    name = generator or file.name.split(".")[0]
    rows = read_rows(file)
    if "completion" in rows[0]:
        require_fields(rows, ("target", "completion"), file)
        rows = model_outputs(rows, name)
    field = "reference_output" if "reference_output" in rows[0] else "output"
    for number, row in enumerate(rows, start=1):
        if not isinstance(row.get("instruction"), str) or not isinstance(row.get(field), str):
            raise MiloraError(f"{file}: row {number}: needs the texts instruction and {field}")
    if len({row["instruction"] for row in rows}) < len(rows):
        raise MiloraError(f"{file}: an instruction stands in it twice")
    of = "reference_generator" if field == "reference_output" else "generator"
    return [{"instruction": row["instruction"], "output": row[field], "generator": row.get(of) or name} for row in rows]

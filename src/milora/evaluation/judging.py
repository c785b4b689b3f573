"""Win rates: a judge compares a model's outputs with reference outputs, instruction by instruction.

As AlpacaEval does it: two equal outputs are a draw and no judge is asked; what a judge could not decide is null
and left out. Each judgement is written down as soon as it is there, so that a judging that stops goes on where
it was: nulls are asked again, everything else is not.

    judgements.jsonl           one judgement a row, in the form of alpaca_eval's annotations
    win_rate.json              the win rate, of whom, by whom; written last
    judgements.partial.jsonl   what there is of a judging that has not ended
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from milora.errors import MiloraError
from milora.models.atomic import write_text
from milora.tasks.alpaca_eval import win_rate


@dataclass(frozen=True)
class Pair:
    """Two outputs to one instruction: output_1 of the reference, output_2 of the model."""

    instruction: str
    output_1: str
    output_2: str


@dataclass(frozen=True)
class Judgement:
    """What a judge says: 1 the reference, 2 the model, 0 a draw, between 1 and 2 a probability, None a failure.

    Attributes:
        preference: as above.
        raw: the judge's own words, or why there are none.
    """

    preference: float | None
    raw: str = ""


class Judge(Protocol):
    """A judge.

    Attributes:
        name: what the judgements are filed under; with a setting that changes them, another name.
    """

    name: str

    def judge(self, pair: Pair) -> Judgement:
        """The judgement of one pair. A failure is a null; an error ends the judging."""
        ...


def judge_outputs(
    outputs: Sequence[Mapping[str, str]],
    references: Sequence[Mapping[str, str]],
    judge: Judge,
    folder: str | os.PathLike[str],
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Judge outputs against references and write judgements and win rate into a folder.

    Args:
        outputs: rows {instruction, output, generator} of the model.
        references: the same of the reference; more instructions than ``outputs`` has are let be.
        judge: who compares.
        folder: new, or of a judging that was stopped.
        progress: called with ("judgements", done, all).

    Returns:
        What ``win_rate.json`` holds: the win rate, generator, reference, judge, avg_length of the outputs, the number
        of references.

    Raises:
        MiloraError: the folder holds a win rate, an output has no reference, or the judge cannot go on.
    """
    target = Path(folder)
    check_free(target)
    pairs = _pairs(outputs, references)
    partial = target / "judgements.partial.jsonl"
    known = _known(partial)
    target.mkdir(parents=True, exist_ok=True)
    rows = []
    with partial.open("a", encoding="utf-8") as file:
        file.write("\n" if file.tell() else "")  # the last line may have no end
        for number, (pair, row) in enumerate(pairs, start=1):
            key = _key(judge.name, pair)
            judgement = known.get(key)
            if judgement is None:
                judgement = Judgement(0.0, "equal outputs") if pair.output_1 == pair.output_2 else judge.judge(pair)
                kept = {"key": key, "preference": judgement.preference, "raw": judgement.raw}
                file.write(json.dumps(kept, ensure_ascii=False) + "\n")
                file.flush()
            row |= {"annotator": judge.name, "preference": judgement.preference, "raw_completion": judgement.raw}
            rows.append(row)
            if progress is not None:
                progress("judgements", number, len(pairs))
    summary = _summary(rows, references, judge)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_text(target / "judgements.jsonl", lines)
    write_text(target / "win_rate.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    partial.unlink()
    return summary


def check_free(folder: str | os.PathLike[str]) -> None:
    """Raise a MiloraError if a folder holds a win rate, or something that no judging has left there."""
    target = Path(folder)
    if (target / "win_rate.json").exists():
        raise MiloraError(f"judge: {target} holds a win rate; allowed: a new folder")
    if target.exists() and not target.is_dir():
        raise MiloraError(f"judge: {target} is a file; allowed: a new folder")
    if target.is_dir() and any(target.iterdir()) and not (target / "judgements.partial.jsonl").exists():
        raise MiloraError(f"judge: {target} holds something else; allowed: a new folder")


def _pairs(
    outputs: Sequence[Mapping[str, str]], references: Sequence[Mapping[str, str]]
) -> list[tuple[Pair, dict[str, Any]]]:
    by_instruction = {row["instruction"]: row for row in references}
    pairs = []
    for number, row in enumerate(outputs, start=1):
        if (other := by_instruction.get(row["instruction"])) is None:
            raise MiloraError(
                f"judge: output {number} has no reference for its instruction {row['instruction'][:60]!r}"
            )
        pair = Pair(row["instruction"], other["output"], row["output"])
        named = {
            "instruction": pair.instruction,
            "output_1": pair.output_1,
            "generator_1": other["generator"],
            "output_2": pair.output_2,
            "generator_2": row["generator"],
        }
        pairs.append((pair, named))
    return pairs


def _key(judge: str, pair: Pair) -> str:
    parts = json.dumps([judge, pair.instruction, pair.output_1, pair.output_2])
    return hashlib.sha256(parts.encode("utf-8")).hexdigest()


def _known(partial: Path) -> dict[str, Judgement]:
    return {
        row["key"]: Judgement(row["preference"], row["raw"]) for row in _lines(partial) if row["preference"] is not None
    }


def _lines(partial: Path) -> Iterator[dict[str, Any]]:
    if not partial.exists():
        return
    for line in partial.read_text(encoding="utf-8").split("\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue  # the line at which a process was killed
        if isinstance(row, dict) and {"key", "preference", "raw"} <= row.keys():
            yield row


def _summary(rows: Sequence[Mapping[str, Any]], references: Sequence[Any], judge: Judge) -> dict[str, Any]:
    def names(field: str) -> str:
        return ", ".join(sorted({row[field] for row in rows}))

    return {
        **win_rate(row["preference"] for row in rows),
        "n_failed": sum(row["preference"] is None for row in rows),
        # Whole, as the leaderboard has it.
        "avg_length": sum(len(row["output_2"]) for row in rows) // len(rows) if rows else None,
        "generator": names("generator_2"),
        "reference": names("generator_1"),
        "references": len(references),
        "judge": judge.name,
    }

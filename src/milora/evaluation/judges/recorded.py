"""Judgements that were made before, by whomever."""

import os
from pathlib import Path

from milora.errors import MiloraError
from milora.evaluation.judging import Judgement, Pair
from milora.tasks.local_files import read_rows, require_fields


class RecordedJudge:
    """A file of judgements.

    Args:
        path: rows {instruction, preference} with ``output_2`` or ``output`` where the output is recorded too.

    Raises:
        MiloraError: no such file, or a row without an instruction or a preference (which may be null).
    """

    def __init__(self, path: str | os.PathLike[str]):
        file = Path(path).expanduser()
        if not file.is_file():
            raise MiloraError(f"judge: no such file: {file}")
        rows = read_rows(file)
        require_fields(rows, ("instruction",), file)
        for number, row in enumerate(rows, start=1):
            if "preference" not in row:
                raise MiloraError(f"{file}: row {number} has no field 'preference'")
        annotators = sorted({str(row["annotator"]) for row in rows if row.get("annotator")})
        self.name = f"recorded ({', '.join(annotators) or file.name})"
        self._file = file
        self._rows = {row["instruction"]: row for row in rows}

    def judge(self, pair: Pair) -> Judgement:
        """The recorded judgement.

        Raises:
            MiloraError: there is none of this instruction, or it is of another output.
        """
        row = self._rows.get(pair.instruction)
        if row is None:
            raise MiloraError(f"judge: {self._file} has no judgement of {pair.instruction[:60]!r}")
        judged = row.get("output_2", row.get("output"))
        if judged is not None and judged != pair.output_2:
            raise MiloraError(f"judge: {self._file} judges another output to {pair.instruction[:60]!r}")
        return Judgement(row["preference"], row.get("raw_completion") or "")

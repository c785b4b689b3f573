"""What the workers of one call have done, one small file for each weight, so that they need not talk to one another.

A worker that comes to a weight reads here whether another one has finished it; whoever draws the progress bar and adds
up the result reads here too. The decompositions themselves lie in the store; this folder is of no use after the call.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from milora.models.atomic import write_text


class Ledger:
    """The records of one call.

    Args:
        folder: where they lie; all workers of the call name the same.
        since: older records are those of an earlier call in the same folder and do not count.
    """

    def __init__(self, folder: Path, since: float = 0.0) -> None:
        self.folder = folder
        self.since = since
        self._known: dict[int, dict[str, Any]] = {}

    def write(self, item: int, record: dict[str, Any]) -> None:
        """Record an item as done."""
        # Two workers may both come to the end of an item, one having computed it and one having found it.
        kind = "computed" if record["computed"] else "found"
        write_text(self.folder / f"{item}.{kind}.json", json.dumps({**record, "at": time.time()}))

    def read(self, item: int) -> dict[str, Any] | None:
        """The record of an item, or None where nobody has finished it."""
        if item not in self._known:
            for kind in ("computed", "found"):
                record = self._read(self.folder / f"{item}.{kind}.json")
                if record is not None:
                    self._known[item] = record
                    break
        return self._known.get(item)

    def all(self, count: int) -> dict[int, dict[str, Any]]:
        """The records of those among the first `count` items that are done."""
        return {i: record for i in range(count) if (record := self.read(i)) is not None}

    def afresh(self) -> Ledger:
        """The same ledger, with nothing read yet: a record that was found may have been computed by another worker."""
        return Ledger(self.folder, self.since)

    def _read(self, file: Path) -> dict[str, Any] | None:
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return record if record["at"] >= self.since else None

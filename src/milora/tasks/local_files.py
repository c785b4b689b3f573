"""Finding and reading the local files that a task takes its rows from.

A task looks in the folder given as ``data_dir`` (in the harness: ``--metadata '{"data_dir": "..."}'``) or
else in the environment variable ``MILORA_TASK_DATA``. Each task states its file-name patterns; a name may
lie in the folder itself or up to three folders below it, and exactly one file has to match. Either place
may also name one file, which is then read whatever it is called.

Rows are one JSON object a line (``.jsonl``, ``.jsonl.gz``) or one list (``.json``).
"""

import gzip
import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from milora.errors import MiloraError

ENVIRONMENT = "MILORA_TASK_DATA"
_DEPTHS = ("", "*/", "*/*/", "*/*/*/")


def data_location(data_dir: str | os.PathLike[str] | None) -> Path | None:
    """The folder or file to read from, or None when neither the argument nor the environment names one.

    Raises:
        MiloraError: what is named does not exist.
    """
    named = os.fspath(data_dir) if data_dir else os.environ.get(ENVIRONMENT)
    if not named:
        return None
    location = Path(named).expanduser()
    if not location.exists():
        source = "data_dir" if data_dir else ENVIRONMENT
        raise MiloraError(f"{source}: no such file or folder: {location}")
    return location


def find_file(location: Path, patterns: Sequence[str], task: str) -> Path:
    """The one file of a task at ``location``.

    Args:
        location: a file (taken as it is) or a folder.
        patterns: globs relative to a folder, for example ``boolq.jsonl``.
        task: named in the error.

    Raises:
        MiloraError: no file matches, or several do.
    """
    files = find_files(location, patterns)
    if not files:
        raise MiloraError(f"{task}: no data in {location}: looked for {', '.join(patterns)}")
    if len(files) > 1:
        names = ", ".join(str(p.relative_to(location)) for p in files)
        raise MiloraError(f"{task}: several data files in {location}: {names}; name one of them as data_dir")
    return files[0]


def find_files(location: Path, patterns: Sequence[str]) -> list[Path]:
    """All files at ``location`` that fit one of the patterns; a ``location`` that is a file is the one."""
    if location.is_file():
        return [location]
    found = {p for depth in _DEPTHS for pattern in patterns for p in location.glob(depth + pattern)}
    return sorted(p for p in found if p.is_file())


def read_text(path: Path) -> str:
    """The whole of a UTF-8 text file, or of gzip of one.

    Raises:
        MiloraError: it cannot be read, or holds no text.
    """
    text = _content(path)
    if not text.strip():
        raise MiloraError(f"{path}: no text")
    return text


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a ``.jsonl``, ``.jsonl.gz``, ``.json`` or ``.json.gz`` file.

    Raises:
        MiloraError: a line is not a JSON object (its number, from 1, is named), or there is no row.
    """
    text = _content(path)
    rows = _parse_list(path, text) if ".json" in path.suffixes else _parse_lines(path, text)
    if not rows:
        raise MiloraError(f"{path}: no rows")
    return rows


def _content(path: Path) -> str:
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return content.decode("utf-8-sig")
    except (OSError, zlib.error, EOFError, UnicodeDecodeError) as error:
        raise MiloraError(f"{path}: cannot be read: {error}") from error


def _parse_list(path: Path, text: str) -> list[dict[str, Any]]:
    try:
        rows = json.loads(text)
    except ValueError as error:
        raise MiloraError(f"{path}: not JSON: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise MiloraError(f"{path}: expected a list of objects")
    return rows


def _parse_lines(path: Path, text: str) -> list[dict[str, Any]]:
    rows = []
    # Not splitlines: it also breaks at U+2028 and U+0085, which may stand inside a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise MiloraError(f"{path}: line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise MiloraError(f"{path}: line {number} is not a JSON object")
        rows.append(row)
    return rows


def require_fields(rows: Iterable[Mapping[str, Any]], fields: Sequence[str], path: Path) -> None:
    """Check that every row has the fields.

    Raises:
        MiloraError: names the first row (from 1) and the field that is missing.
    """
    for number, row in enumerate(rows, start=1):
        for field in fields:
            if row.get(field) is None:
                raise MiloraError(f"{path}: row {number} has no field {field!r}; fields: {', '.join(row)}")

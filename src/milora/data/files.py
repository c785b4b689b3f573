"""Rows out of a file, a folder or the hub, before their format is looked at."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from milora.errors import MiloraError
from milora.models.checkpoint import is_local

SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".parquet", ".txt", ".txt.gz")


def read_rows(dataset: str | Path, split: str = "train") -> Sequence[Any]:
    """The rows of a data set, as dictionaries.

    Args:
        dataset: a file (.json, .jsonl, .parquet, .txt; all but parquet also .gz), a folder that `datasets`
            can read, or the name of a data set on the hub, with its configuration after a colon
            (`openai/gsm8k:main`).
        split: the split of a folder or hub data set, in the notation of `datasets` (`train[:1000]`). A file,
            and a folder of `save_to_disk` without splits, is one split: its name does not matter, a slice of
            it does.

    Raises:
        MiloraError: no such file, an unknown suffix, broken JSON (with the line), no such data set or split.
    """
    path = Path(dataset)
    if path.is_dir():
        return _load_folder(path, split)
    suffix = _suffix(path)
    if path.is_file():
        if suffix not in SUFFIXES:
            raise MiloraError(f"data set {dataset}: got a file {path.name!r}, allowed {', '.join(SUFFIXES)}")
        return _slice(_read_file(path, suffix), split, dataset)
    if suffix in SUFFIXES or str(dataset).startswith((".", "/", "~")):
        raise MiloraError(f"data set {dataset}: no such file or folder")
    return _load_hub(str(dataset), split)


def hub_name(dataset: str | Path) -> str | None:
    """The name of a data set on the hub without its configuration, or None for a file or folder (see `is_local`)."""
    if is_local(dataset) or _suffix(Path(dataset)) in SUFFIXES:
        return None
    return str(dataset).partition(":")[0]


def _suffix(path: Path) -> str:
    ending = path.suffix.lower()
    return Path(path.stem).suffix.lower() + ending if ending == ".gz" else ending


def _read_file(path: Path, suffix: str) -> list[Any]:
    if suffix == ".parquet":
        return _read_parquet(path)
    try:
        raw = path.read_bytes()
        content = (gzip.decompress(raw) if suffix.endswith(".gz") else raw).decode("utf-8-sig")
    except (gzip.BadGzipFile, zlib.error, EOFError, UnicodeDecodeError) as error:
        raise MiloraError(f"data set {path}: cannot be read ({error})") from error
    if suffix.startswith(".txt"):
        return [{"text": paragraph} for paragraph in _paragraphs(content)]
    if suffix.startswith(".json") and not suffix.startswith(".jsonl") and content.lstrip().startswith("["):
        return _parse(content, path, 1)
    return [_parse(line, path, n) for n, line in enumerate(content.split("\n"), 1) if line.strip()]


def _paragraphs(content: str) -> list[str]:
    """The parts between blank lines; in a text without a blank line, its lines (WikiText is such a file)."""
    parts = [part.strip() for part in re.split(r"\n\s*\n", content) if part.strip()]
    return parts if len(parts) > 1 else [line.strip() for line in content.split("\n") if line.strip()]


def _parse(content: str, path: Path, line: int) -> Any:
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        where = f"line {line + error.lineno - 1}, column {error.colno}"
        raise MiloraError(f"data set {path}, {where}: broken JSON ({error.msg})") from error


def _read_parquet(path: Path) -> list[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise MiloraError(f"data set {path}: broken parquet ({_first_line(error)})") from error


def _slice(rows: list[Any], split: str, dataset: str | Path) -> list[Any]:
    match = re.fullmatch(r"\w+(?:\[(\d*)(%?):(\d*)(%?)\])?", split)
    if match is None:
        raise MiloraError(f"data set {dataset}: got split {split!r}, allowed a name or a slice as train[:1000]")
    start, start_percent, stop, stop_percent = match.groups(default="")
    first = _position(start, start_percent, len(rows)) if start else 0
    last = _position(stop, stop_percent, len(rows)) if stop else len(rows)
    return rows[first:last]


def _position(number: str, percent: str, size: int) -> int:
    return round(size * int(number) / 100) if percent else int(number)


def _load_folder(folder: Path, split: str) -> Sequence[Any]:
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        return _load_saved(folder, split)
    return _load(str(folder), None, split)


def _load_saved(folder: Path, split: str) -> Sequence[Any]:
    import datasets

    try:
        saved = datasets.load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        raise MiloraError(f"data set {folder}: {_first_line(error)}") from error
    if isinstance(saved, datasets.DatasetDict):
        name = split.partition("[")[0]
        if name not in saved:
            raise MiloraError(f"data set {folder}: got split {split!r}, allowed {', '.join(map(str, saved))}")
        saved = saved[name]
    return _slice(_rows(saved), split, folder)


def _load_hub(dataset: str, split: str) -> Sequence[Any]:
    name, _, configuration = dataset.partition(":")
    return _load(name, configuration or None, split)


def _load(name: str, configuration: str | None, split: str) -> Sequence[Any]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        return _rows(load_dataset(name, configuration, split=split))
    except (DatasetsError, OSError, ValueError) as error:
        raise MiloraError(f"data set {name}, split {split}: {_first_line(error)}") from error


def _rows(loaded: Iterable[Any]) -> list[Any]:
    return list(loaded)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)

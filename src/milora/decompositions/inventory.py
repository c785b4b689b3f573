"""What lies in a store: its entries, how much they take, and how they are removed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from milora.decompositions.entry import Corrupt, EntryName, read_entry, read_record
from milora.linalg import Certificate

LOCK = ".lock"


@dataclass(frozen=True)
class Entry:
    """One file of a store.

    Attributes:
        path: the file.
        name: what its name says.
        size: in bytes.
        used: when it was written or last read, in seconds since the epoch.
    """

    path: Path
    name: EntryName
    size: int
    used: float


def entries(folder: Path) -> Iterator[Entry]:
    """The entries of a store, by key; those that another process removes meanwhile are passed over."""
    for weight in _weights(folder):
        yield from entries_of(weight)


def entries_of(weight: Path) -> list[Entry]:
    """The entries of one weight, in the folder of its key."""
    found: list[Entry] = []
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(weight) as files:
        for file in files:
            name = EntryName.parse(file.name)
            if name is None:
                continue
            with suppress(FileNotFoundError):
                state = file.stat()
                found.append(Entry(Path(file.path), name, state.st_size, state.st_mtime))
    return sorted(found, key=lambda e: e.path.name)


def described(entry: Entry) -> dict[str, Any]:
    """An entry for people and machines: what its name and its record say; the record is not checked."""
    said: dict[str, Any] = {
        "path": str(entry.path),
        "weight": "(cannot be read)",
        "shape": None,
        "part": entry.name.part,
        "dtype": entry.name.dtype,
        "version": entry.name.version,
        "algorithm": None,
        "worst": None,
        "bytes": entry.size,
        "used": entry.used,
    }
    with suppress(OSError, Corrupt, TypeError, KeyError):
        record = read_record(entry.path)
        certificate = Certificate.from_dict(record["certificate"])
        said |= {"weight": record["name"] or record["key"], "shape": record["shape"]}
        said |= {"algorithm": certificate.algorithm, "worst": certificate.worst}
    return said


def remove(entry: Entry) -> bool:
    """Delete an entry; False where it is gone already or cannot be deleted."""
    try:
        entry.path.unlink()
    except OSError:
        return False
    return True


def shrink(folder: Path, limit: int, keep: Path) -> tuple[int, int]:
    """Delete the least recently used entries of a store that has outgrown its limit, down to nine tenths of it.

    Args:
        folder: the store.
        limit: in bytes.
        keep: the entry that was just written.

    Returns:
        The bytes that are left, and how many entries went.
    """
    found = sorted(entries(folder), key=lambda e: e.used)
    size, gone = sum(e.size for e in found), 0
    if size <= limit:
        return size, 0
    for entry in found:
        # Some room to spare, or each write that follows would count everything anew.
        if size <= 0.9 * limit:
            break
        if entry.path != keep and remove(entry):
            size, gone = size - entry.size, gone + 1
    return size, gone


def sweep(weight: Path) -> None:
    """Delete what writers left that were killed; only for the holder of the weight's lock."""
    with suppress(OSError), os.scandir(weight) as files:
        for file in files:
            if file.name.startswith(".") and file.name != LOCK:
                shutil.rmtree(file.path, ignore_errors=True)


def clear(folder: Path, before: float | None = None) -> tuple[int, int]:
    """Delete the entries of a store.

    Args:
        folder: the store.
        before: only those last used before this time, in seconds since the epoch; None is all.

    Returns:
        How many entries went, and how many bytes.
    """
    gone = [e for e in entries(folder) if (before is None or e.used < before) and remove(e)]
    for weight in _weights(folder):
        _remove_if_empty(weight)
    return len(gone), sum(e.size for e in gone)


def verify(folder: Path) -> Iterator[tuple[Entry, str | None]]:
    """Read every entry of a store; with each, what is wrong with it, or None."""
    for entry in entries(folder):
        try:
            read_entry(entry.path)
            yield entry, None
        except Corrupt as problem:
            yield entry, str(problem)
        except FileNotFoundError:
            continue
        except OSError as error:
            yield entry, f"cannot be read: {error.strerror or error}"


def _weights(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(w for shelf in folder.iterdir() if len(shelf.name) == 2 and shelf.is_dir() for w in shelf.iterdir())


def _remove_if_empty(weight: Path) -> None:
    with suppress(OSError, Timeout), FileLock(weight / LOCK, timeout=0):
        if entries_of(weight):
            return
        shutil.rmtree(weight)
    with suppress(OSError):
        weight.parent.rmdir()

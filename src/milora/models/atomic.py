"""Files and folders that are either whole or absent.

Everything is written beside its destination under a temporary name, flushed to the disk and renamed
over the destination in one step: a crash, a kill or a full disk leaves what stood there before. A folder that
replaces a folder takes two renames; between them a kill, and nothing else, leaves the old one under its temporary name.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from milora.errors import MiloraError


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a UTF-8 text file atomically, replacing the file at ``path`` if there is one."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file atomically, replacing the file at ``path`` if there is one.

    Raises:
        MiloraError: the disk is full; the old file is untouched.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that takes its place when the block ends without an error.

    The block may write a file at the temporary path or make a folder there. On an error whatever lies
    at the temporary path is deleted and ``path`` is as it was.

    Raises:
        MiloraError: the disk is full.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    temporary = scratch / target.name
    try:
        yield temporary
        _flush(temporary)
        _swap(temporary, target, scratch)
    except Exception as error:
        if _is_disk_full(error):
            raise MiloraError(f"{target}: no space left on the disk; nothing was changed") from error
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def check_free(target: Path, overwrite: bool, *read: object, file: bool = False) -> None:
    """Refuse a place where something stands, unless it may be replaced.

    Args:
        target: what is to be written.
        overwrite: it may replace a file, or a folder that holds an adapter or a model and nothing else.
        read: what is read on the way (paths, or names of another kind): it must not lie in what would be replaced.
        file: a file is to be written, else a folder.

    Raises:
        MiloraError: what stands there, and why it stays.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not overwrite:
        raise MiloraError(f"output: {target} exists, allowed a new one, or --overwrite")
    if target.is_dir() == file:
        kinds = ("folder", "file") if file else ("file", "folder")
        raise MiloraError(f"output: {target} is a {kinds[0]}, allowed a {kinds[1]}")
    place = target.resolve()
    for source in read:
        found = Path(str(source)).expanduser().resolve() if source else None
        if found is not None and found.exists() and place in (found, *found.parents):
            raise MiloraError(f"output: {target} holds {source}, which is read; --overwrite would delete it")
    if target.is_dir() and (more := _more_than_weights(target)):
        raise MiloraError(f"output: {target} is not only an adapter or a model: {more}; allowed another folder")


def _more_than_weights(folder: Path) -> str:
    """What a folder holds besides an adapter or a model, or what it lacks for one; nothing where it is one alone."""
    names = {path.name: path.is_dir() for path in folder.iterdir()}
    if not names.keys() & {"adapter_config.json", "config.json"}:
        return "it has neither adapter_config.json nor config.json"
    more = [name for name, is_dir in names.items() if is_dir or name == "recipe.yaml"]
    return f"it holds {min(more)}" if more else ""


def _flush(written: Path) -> None:
    files = [p for p in written.rglob("*") if p.is_file()] if written.is_dir() else [written]
    for file in files:
        with file.open("rb") as handle:
            os.fsync(handle.fileno())


def _swap(temporary: Path, target: Path, scratch: Path) -> None:
    if not target.is_dir():
        os.replace(temporary, target)
        return
    # A folder with files in it cannot be renamed over, so it steps aside and comes back on an error.
    aside = scratch / "replaced"
    os.rename(target, aside)
    try:
        os.rename(temporary, target)
    except BaseException:
        with suppress(OSError):
            os.rename(aside, target)
        raise


def _is_disk_full(error: Exception) -> bool:
    # safetensors writes from Rust and raises its own type, with the system's words in the message.
    number = error.errno if isinstance(error, OSError) else None
    return number in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error)

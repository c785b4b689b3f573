"""The text that forgetting is measured on."""

import gzip
import os
from pathlib import Path

from milora.errors import MiloraError

WIKITEXT = "wikitext-103"


def read_text(source: str | os.PathLike[str]) -> str:
    """The whole text of a ``.txt`` or ``.txt.gz`` file, or of WikiText-103's test set.

    Args:
        source: a file in UTF-8, or ``wikitext-103`` for ``wikitext-103-v1`` of the hub (its lines joined).

    Raises:
        MiloraError: no such file, not UTF-8 text, nothing in it, or the hub cannot be reached.
    """
    path = Path(source).expanduser()
    if os.fspath(source) == WIKITEXT and not path.exists():
        return _wikitext()
    if not path.is_file():
        raise MiloraError(f"forgetting: no such file: {path}; allowed: a .txt or .txt.gz file, or {WIKITEXT}")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = content.decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise MiloraError(f"forgetting: {path} is not UTF-8 text or gzip of it: {error}") from error
    if not text.strip():
        raise MiloraError(f"forgetting: {path} holds no text")
    return text


def _wikitext() -> str:
    from datasets import load_dataset

    try:
        rows = load_dataset("Salesforce/wikitext", "wikitext-103-v1", split="test")
    except Exception as error:  # offline and refused downloads raise several unrelated types
        line = str(error).strip().split("\n")[0]
        raise MiloraError(f"forgetting: {WIKITEXT} cannot be had from the hub ({line}); name a file") from error
    return "".join(rows["text"])

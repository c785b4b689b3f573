"""The folder of what can be made again, and how large it may grow."""

from __future__ import annotations

import os
import re
from pathlib import Path

from milora.errors import MiloraError

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZE = "20GB"


def cache_folder() -> Path:
    """Where milora keeps what can be made again: MILORA_CACHE, else XDG_CACHE_HOME/milora, else ~/.cache/milora."""
    if os.environ.get("MILORA_CACHE"):
        return Path(os.environ["MILORA_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "milora"


def cache_limit() -> int:
    """How many bytes of decompositions may lie in it: MILORA_CACHE_SIZE, else 20GB.

    Raises:
        MiloraError: MILORA_CACHE_SIZE is no size.
    """
    given = os.environ.get("MILORA_CACHE_SIZE") or _SIZE
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?B?)\s*", given.upper())
    unit = match and (match[2] if match[2].endswith("B") or not match[2] else f"{match[2]}B")
    if match is None or unit is None:
        raise MiloraError(f"MILORA_CACHE_SIZE: got {given!r}, allowed a size such as 20GB, 500MB, 1000000")
    return int(float(match[1]) * _UNITS[unit])

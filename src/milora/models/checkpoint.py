"""Look at a checkpoint folder before anything is built from it, and say in one line what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from milora.errors import MiloraError

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def is_local(name_or_path: str | Path) -> bool:
    """Whether a name means a folder here rather than a model on the hub (`owner/name`)."""
    path = Path(name_or_path)
    looks_like_path = str(name_or_path).startswith((".", "/", "~")) or len(path.parts) > 2
    return path.expanduser().exists() or looks_like_path


def check_checkpoint(folder: str | Path, *, config: bool = True) -> None:
    """Check a local model folder: it exists, has a config and whole safetensors weights.

    Args:
        folder: the model's folder.
        config: whether it needs a config.json.

    Raises:
        MiloraError: no such folder, no config.json, no weights, pickled weights only, a shard that is missing,
            truncated or not a safetensors file.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise MiloraError(f"model folder: got {folder}, which does not exist or is no folder")
    if config and not (folder / "config.json").is_file():
        raise MiloraError(f"model folder: {folder} holds no config.json")
    files = weight_files(folder)
    if not files:
        pickles = sorted(p.name for pattern in _PICKLES for p in folder.glob(pattern))
        if pickles:
            raise MiloraError(
                f"model folder: {folder} holds only pickled weights ({pickles[0]}), which can run code when loaded;"
                " allowed: safetensors"
            )
        raise MiloraError(f"model folder: {folder} holds no weights (*.safetensors)")
    for file in files:
        check_safetensors(file)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder: what its index names, or the single file, or any."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise MiloraError(f"{index}: not a safetensors index ({type(error).__name__})") from error
        outside = [n for n in names if not isinstance(n, str) or Path(n).name != n]
        if outside:
            raise MiloraError(f"{index}: names a file outside its folder: {outside[0]!r}")
        return [folder / name for name in names]
    single = folder / "model.safetensors"
    return [single] if single.is_file() else sorted(folder.glob("*.safetensors"))


def check_safetensors(file: Path) -> None:
    """Check that a safetensors file opens: its header is whole and its size is what the header says."""
    if not file.is_file():
        raise MiloraError(f"weights: {file} does not exist, though the index names it")
    try:
        with safe_open(file, framework="pt") as handle:
            handle.keys()
    except (SafetensorError, OSError, ValueError) as error:
        raise MiloraError(f"weights: {file} is broken or truncated ({' '.join(str(error).split())})") from error

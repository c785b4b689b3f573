"""Which checkpoint a stopped run goes on from. A kill may have left the newest one half written."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

WEIGHTS = ("adapter_model.safetensors", "model.safetensors", "model.safetensors.index.json")
PICKLED = ("optimizer.pt", "scheduler.pt")


def newest_complete(checkpoints: Sequence[Path]) -> tuple[Path | None, list[str]]:
    """Find the newest checkpoint from which training can go on.

    Args:
        checkpoints: checkpoint folders in the order of their steps.

    Returns:
        The folder, or None if none is complete; and one sentence for each newer one that is not.
    """
    skipped = []
    for folder in reversed(checkpoints):
        flaw = _flaw(folder)
        if flaw is None:
            return folder, skipped
        skipped.append(f"{folder.name} is incomplete ({flaw}) and is left out")
    return None, skipped


def step_of(checkpoint: Path) -> int:
    """The number of optimiser steps done when the checkpoint was written."""
    return int(json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["global_step"])


def read_weights(checkpoint: Path) -> dict[str, Tensor]:
    """The adapter, or the whole model, that a complete checkpoint holds: tensors by name, on the CPU."""
    file = next(checkpoint / name for name in WEIGHTS if (checkpoint / name).is_file())
    return {name: tensor for shard in _shards(file) for name, tensor in load_file(shard).items()}


def _flaw(folder: Path) -> str | None:
    weights = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    if not weights:
        return "no weights"
    random_states = sorted(folder.glob("rng_state*.pth"))
    if not random_states:
        return "no rng_state.pth"
    try:
        # The Trainer writes this file last, so it is looked at first: it is cheap.
        step_of(folder)
        for file in weights:
            _read_weights(file)
        for file in [folder / name for name in PICKLED] + random_states:
            _read_pickle(file)
    except FileNotFoundError as error:
        return f"no {Path(error.filename).name}"
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, EOFError) as error:
        return str(error).splitlines()[0]
    return None


def _read_weights(file: Path) -> None:
    for shard in _shards(file):
        if not shard.is_file():
            raise FileNotFoundError(2, "absent", str(shard))
        # Opening compares the length of the file with what its header promises.
        with safe_open(shard, framework="pt"):
            pass


def _shards(file: Path) -> list[Path]:
    if file.suffix != ".json":
        return [file]
    return [file.parent / name for name in sorted(set(json.loads(file.read_text())["weight_map"].values()))]


def _read_pickle(file: Path) -> None:
    if not file.is_file():
        raise FileNotFoundError(2, "absent", str(file))
    # torch's files are zip archives whose directory is written last: a cut one has none. Nothing is unpickled.
    torch._C.PyTorchFileReader(str(file))

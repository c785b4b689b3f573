"""The end of a run: the adapter, whole or not at all, where PEFT's users look for it."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from milora.adapters import export_lora
from milora.errors import MiloraError
from milora.methods import METHODS
from milora.models.atomic import replacing
from milora.recipes.schema import Recipe
from milora.runs import RunFolder

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")


def save_result(model: Any, tokenizer: Any, recipe: Recipe, run: RunFolder, state: Any = None) -> None:
    """Write what was trained into the run folder; ``state`` holds its tensors where the model has only parts of them.

    - a spectral method: its own form in ``adapter/``, and the exact plain LoRA (DoRA, with a magnitude) at the root,
      which PEFT loads without this package;
    - a method of PEFT: its adapter at the root;
    - full fine-tuning: the model and its tokenizer in ``model/``.

    Raises:
        MiloraError: NaN or Inf in what was trained, or the disk is full; what stood there before still does.
    """
    _check_trained(model, state)
    with disk_full_in_one_line(run.path):
        if recipe.method == "full":
            with replacing(run.model) as folder:
                model.save_pretrained(folder, state_dict=state)
                tokenizer.save_pretrained(folder)
        elif recipe.method in METHODS:
            with replacing(run.adapter) as folder:
                _save_adapter(model, folder, state)
            with _into_root(run) as folder:
                export_lora(run.adapter, recipe.model_name_or_path, folder)
        else:
            with _into_root(run) as folder:
                _save_adapter(model, folder, state)


def _check_trained(model: Any, state: Mapping[str, Any] | None) -> None:
    """The steps since the last log event may have ended in numbers that are none."""
    trained = state or {name: p for name, p in model.named_parameters() if p.requires_grad}
    for name, tensor in trained.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise MiloraError(
                f"training: {name} holds NaN or Inf at the end, nothing was saved; a smaller learning_rate or dtype"
                " float32 may help"
            )


@contextmanager
def disk_full_in_one_line(folder: Path) -> Iterator[None]:
    """Turn the ways in which writers say that a disk is full into one MiloraError."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch's writer ends in a RuntimeError about positions in the file, whatever the system said.
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        full = full or any(words in str(error) for words in ("No space left", "PytorchStreamWriter", "unexpected pos"))
        if not full:
            raise
        free = shutil.disk_usage(next(p for p in (folder, *folder.absolute().parents) if p.exists())).free
        raise MiloraError(
            f"{folder}: no space left on the disk while saving ({free} bytes free); complete checkpoints stay, "
            "--resume goes on from the newest"
        ) from error


def _save_adapter(model: Any, folder: Path, state: Any) -> None:
    model.save_pretrained(folder, state_dict=state)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty template of a card


@contextmanager
def _into_root(run: RunFolder) -> Iterator[Path]:
    # The root holds other files, so the adapter's are made in a folder inside and renamed one by one: the weights
    # first, for the configuration is what makes a folder an adapter.
    with tempfile.TemporaryDirectory(prefix=".adapter.", dir=run.path) as scratch:
        folder = Path(scratch) / "adapter"
        yield folder
        for name in ADAPTER_FILES:
            with (folder / name).open("rb") as file:
                os.fsync(file.fileno())
        for name in ADAPTER_FILES:
            os.replace(folder / name, run.path / name)

"""Rows with pictures on their way into a model: read and made ready batch by batch, never kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import Sampler

from milora.data.pictures import open_picture
from milora.models.pictures import Pictures
from milora.training.masking import IGNORED, IMAGE

SAVED = ".modules_to_save."  # in the names of what PEFT trains in full


def widen_saved_modules(model: nn.Module) -> None:
    """Train a projector of a bfloat16 model in float32, in which its small steps are not lost.

    Autocast still computes with its values rounded to bfloat16, so that the start is the base's.
    """
    for name, parameter in model.named_parameters():
        if SAVED in name and parameter.requires_grad:
            parameter.data = parameter.data.float()


def located(rows: Dataset, folder: Path) -> Dataset:
    """The rows with whole paths to their pictures; rows that cannot have any, as they are."""
    if IMAGE not in rows.column_names:
        return rows
    paths = [str(folder / name) if name else None for name in rows[IMAGE]]
    return rows.remove_columns(IMAGE).add_column(IMAGE, paths, feature=rows.features[IMAGE])  # pyright: ignore


class PictureCollator:
    """A batch of rows with and without pictures: ids, labels and mask padded on the right, and the pictures' pixels.

    Args:
        pictures: how the model takes pictures.
    """

    def __init__(self, pictures: Pictures):
        self.pictures = pictures

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        wide = [self.pictures.expand(row["input_ids"], row["labels"]) for row in rows]
        longest = max(len(ids) for ids, _ in wide)
        pad = self.pictures.tokenizer.pad_token_id
        batch = {
            "input_ids": torch.tensor([ids + [pad] * (longest - len(ids)) for ids, _ in wide]),  # (rows, longest)
            "labels": torch.tensor([labels + [IGNORED] * (longest - len(labels)) for _, labels in wide]),
            "attention_mask": torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in wide]),
        }
        files = [row[IMAGE] for row in rows if row[IMAGE]]
        if files:
            batch["pixel_values"] = self.pictures.pixels([open_picture(Path(file)) for file in files])
        return batch


class ByModality(Sampler[int]):
    """LLaVA's `group_by_modality_length`: the rows of an optimiser step all have pictures, or none has one.

    The rows of each kind are shuffled and cut into steps; inside a step they are dealt out by length, so that its
    batches take about the same time. The steps are shuffled, and what is left of either kind comes last.

    Args:
        rows: with ids and pictures.
        batch_size: rows in one forward pass.
        batches: forward passes in an optimiser step, over all processes.
        seed: of the order; each epoch has its own.
    """

    def __init__(self, rows: Dataset, batch_size: int, batches: int, seed: int):
        self.lengths = [len(ids) for ids in rows["input_ids"]]
        self.has_picture = [bool(file) for file in rows[IMAGE]]
        self.batches, self.step, self.seed, self.epoch = batches, batch_size * batches, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Take the order of another epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        draw = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(self), generator=draw).tolist()
        steps: list[list[int]] = []
        rest: list[int] = []
        for kind in (True, False):
            mine = [i for i in order if self.has_picture[i] == kind]
            whole = len(mine) - len(mine) % self.step
            steps += [self._dealt(mine[at : at + self.step]) for at in range(0, whole, self.step)]
            rest += mine[whole:]
        shuffled = [steps[i] for i in torch.randperm(len(steps), generator=draw).tolist()]
        return iter([i for rows in [*shuffled, rest] for i in rows])

    def _dealt(self, rows: list[int]) -> list[int]:
        by_length = sorted(rows, key=lambda i: self.lengths[i], reverse=True)
        return [i for batch in range(self.batches) for i in by_length[batch :: self.batches]]

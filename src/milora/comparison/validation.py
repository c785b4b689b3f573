"""Validation loss row by row: -log p of each answer's tokens, the same for the base and for every tuned model.

    loss = sum over rows of the row's summed loss / sum of their tokens

Rows are kept apart, so that two models can be compared row by row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from milora.errors import MiloraError
from milora.training.masking import IGNORED

Collator = Callable[[Sequence[Mapping[str, Any]]], Mapping[str, Tensor]]


@dataclass(frozen=True)
class RowSums:
    """Sums over the trained tokens of one row: loss in nats, first choices that are right, tokens."""

    loss: float
    right: int
    tokens: int


def row_losses(
    model: Any, rows: Dataset, *, pad_token_id: int, batch_size: int = 8, collator: Collator | None = None
) -> list[dict[str, float]]:
    """The summed loss and the number of trained tokens of each row, in the rows' order; in nats.

    Args:
        model: in any mode; it is given back in the same.
        rows: `input_ids` and `labels`, as `milora.training.masking.tokenise` makes them.
        pad_token_id: fills shorter rows of a batch; it is masked.
        batch_size: rows in one forward pass.
        collator: makes a batch of rows in place of that, with `labels` in it; for rows that show pictures.

    Raises:
        MiloraError: a loss that is not finite.
    """
    found = row_sums(model, rows.to_list(), pad_token_id=pad_token_id, batch_size=batch_size, collator=collator)
    if not all(math.isfinite(row.loss) for row in found):
        raise MiloraError("validation: the loss of a row is not finite")
    return [{"loss": row.loss, "tokens": row.tokens} for row in found]


@torch.no_grad()
def row_sums(
    model: Any,
    rows: Sequence[Mapping[str, Any]],
    *,
    pad_token_id: int,
    batch_size: int = 8,
    collator: Collator | None = None,
) -> list[RowSums]:
    """What the model makes of the labels of each row, in the rows' order; see :func:`row_losses`."""
    training = model.training
    model.eval()
    try:
        collate = collator or partial(padded, pad_token_id=pad_token_id)
        # Rows of about one length go together: less padding.
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
        by_row: dict[int, RowSums] = {}
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            found = _batch(model, collate([rows[i] for i in chosen]))
            by_row |= dict(zip(chosen, found, strict=True))
    finally:
        model.train(training)
    return [by_row[i] for i in range(len(rows))]


def mean_loss(rows: Sequence[dict[str, float]]) -> float:
    """The mean over all trained tokens."""
    return math.fsum(row["loss"] for row in rows) / sum(row["tokens"] for row in rows)


def padded(rows: Sequence[Mapping[str, Any]], pad_token_id: int) -> dict[str, Tensor]:
    """`input_ids`, `labels` and `attention_mask` (rows, longest), filled up on the right."""
    length = max(len(row["input_ids"]) for row in rows)
    ids = torch.full((len(rows), length), pad_token_id)
    labels = torch.full((len(rows), length), IGNORED)
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for i, row in enumerate(rows):
        size = len(row["input_ids"])
        ids[i, :size] = torch.tensor(row["input_ids"])
        labels[i, :size] = torch.tensor(row["labels"])
        mask[i, :size] = 1
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def _batch(model: Any, batch: Mapping[str, Tensor]) -> list[RowSums]:
    inputs = {name: inputs_to(model, value) for name, value in batch.items() if name != "labels"}
    logits = model(**inputs, use_cache=False).logits[:, :-1]  # (batch, length - 1, vocabulary)
    return [_row(own, targets) for own, targets in zip(logits, batch["labels"][:, 1:], strict=True)]


def inputs_to(model: Any, value: Tensor) -> Tensor:
    """An input on the model's device; pixels in its dtype too."""
    return value.to(model.device, model.dtype if value.is_floating_point() else None)


def _row(
    logits: Tensor,  # (length - 1, vocabulary)
    targets: Tensor,  # (length - 1,)
) -> RowSums:
    trained = targets != IGNORED
    targets = targets[trained].to(logits.device)
    log_p = torch.log_softmax(logits[trained.to(logits.device)].float(), dim=-1)  # (trained, vocabulary)
    loss = -log_p.gather(-1, targets.unsqueeze(-1)).double().sum()
    right = log_p.argmax(dim=-1) == targets
    return RowSums(float(loss), int(right.sum()), len(targets))

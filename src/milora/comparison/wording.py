"""How well a model knows a text by heart: each paragraph by itself, every token given the true ones before it.

    nll = -(1/T) sum_t log p(x_t | x_<t),      accuracy = (1/T) sum_t [x_t = argmax_v p(v | x_<t)]

over the T predicted tokens of all paragraphs. Paragraphs are those that training takes from the same file. The first
token of a paragraph is context only, unless the tokenizer begins a text with its BOS token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from milora.data.files import read_rows
from milora.errors import MiloraError


def paragraphs(file: str | Path, tokenizer: Any, context: int | None = None) -> list[list[int]]:
    """The token ids of a text's paragraphs; longer ones than the model's context are cut into several.

    Args:
        file: a .txt or .txt.gz file, or rows with a field `text`.
        tokenizer: of the model.
        context: the model's `max_position_embeddings`, if it has one.

    Raises:
        MiloraError: no such file, a row without text, or no paragraph of two tokens.
    """
    found: list[list[int]] = []
    for number, row in enumerate(read_rows(file), 1):
        text = row.get("text") if isinstance(row, dict) else None
        if not isinstance(text, str):
            raise MiloraError(f"{file}: row {number} has no field 'text'")
        ids = list(tokenizer(text, verbose=False)["input_ids"])
        size = context or max(len(ids), 1)
        found += [part for i in range(0, len(ids), size) if len(part := ids[i : i + size]) > 1]
    if not found:
        raise MiloraError(f"{file}: got no paragraph of two tokens, allowed at least one")
    return found


@torch.no_grad()
def wording(model: Any, rows: Sequence[Sequence[int]], *, pad_token_id: int = 0, batch_size: int = 8) -> dict[str, Any]:
    """The model's loss and accuracy on paragraphs.

    Returns:
        nll (nats per token), accuracy, tokens (predicted ones).

    Raises:
        MiloraError: a loss that is not finite.
    """
    training = model.training
    model.eval()
    try:
        # Paragraphs of about one length go together: less padding.
        ordered = sorted(rows, key=len)
        batches = [ordered[i : i + batch_size] for i in range(0, len(ordered), batch_size)]
        sums = torch.stack([_batch(model, batch, pad_token_id) for batch in batches]).sum(dim=0)  # (3,)
    finally:
        model.train(training)
    loss, right, tokens = sums.tolist()
    if not math.isfinite(loss):
        raise MiloraError("wording: the loss of a paragraph is not finite")
    return {"nll": loss / tokens, "accuracy": right / tokens, "tokens": int(tokens)}


def _batch(model: Any, rows: Sequence[Sequence[int]], pad_token_id: int) -> Tensor:  # (3,), float64
    """Sums over the predicted tokens: the loss, those that are the first choice, their number."""
    length = max(map(len, rows))
    ids = torch.full((len(rows), length), pad_token_id)  # (batch, length)
    mask = torch.zeros(len(rows), length, dtype=torch.long)  # (batch, length)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    ids, mask = ids.to(model.device), mask.to(model.device)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[
        :, :-1
    ]  # (batch, length - 1, vocabulary)
    total = torch.zeros(3, dtype=torch.float64)
    for own, targets, there in zip(logits, ids[:, 1:], mask[:, 1:].bool(), strict=True):
        own, targets = own[there].float(), targets[there]  # (tokens, vocabulary), (tokens,)
        log_p = torch.log_softmax(own, dim=-1).gather(-1, targets.unsqueeze(-1))  # (tokens, 1)
        right = own.argmax(dim=-1) == targets
        total += torch.stack([-log_p.double().sum(), right.double().sum(), torch.tensor(len(targets)).double()]).cpu()
    return total

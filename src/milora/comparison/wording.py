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

from milora.comparison.validation import row_sums
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


def wording(model: Any, rows: Sequence[Sequence[int]], *, pad_token_id: int = 0, batch_size: int = 8) -> dict[str, Any]:
    """The model's loss and accuracy on paragraphs.

    Returns:
        nll (nats per token), accuracy, tokens (predicted ones).

    Raises:
        MiloraError: a loss that is not finite.
    """
    labelled = [{"input_ids": row, "labels": row} for row in rows]
    found = row_sums(model, labelled, pad_token_id=pad_token_id, batch_size=batch_size)
    loss, tokens = math.fsum(row.loss for row in found), sum(row.tokens for row in found)
    if not math.isfinite(loss):
        raise MiloraError("wording: the loss of a paragraph is not finite")
    return {"nll": loss / tokens, "accuracy": sum(row.right for row in found) / tokens, "tokens": tokens}

"""What a model answers to the first validation prompts, beside its base: `samples.jsonl` of a run.

A line is {"prompt", "target", "base", "tuned"}: the tokens before the row's first trained one, the trained ones, and
what the two models write greedily. Rows whose every token is trained have no prompt and are passed over.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from milora.models.atomic import write_text
from milora.training.masking import IGNORED

FILE = "samples.jsonl"


def sample_rows(rows: Any, count: int) -> list[dict[str, list[int]]]:
    """The first rows that have a prompt: {"prompt", "target"} in tokens.

    Args:
        rows: `input_ids` and `labels`, as `milora.training.masking.tokenise` makes them; None has none.
        count: at most so many.
    """
    found: list[dict[str, list[int]]] = []
    for row in rows or ():
        if len(found) == count:
            break
        trained = [i for i, label in enumerate(row["labels"]) if label != IGNORED]
        if trained and trained[0] > 0:
            start = trained[0]
            # A conversation's first answer: up to the next token that is not trained.
            end = next((i for i in range(start, len(row["labels"])) if row["labels"][i] == IGNORED), len(row["labels"]))
            found.append({"prompt": row["input_ids"][:start], "target": row["input_ids"][start:end]})
    return found


@torch.no_grad()
def answers(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[str]:
    """What a model writes after each prompt, greedily; it is given back in the mode it came in.

    Args:
        model: a built causal model.
        tokenizer: its tokenizer.
        prompts: token ids, each of its own length.
        max_new_tokens: of each answer; it ends before that where the model ends it.
    """
    length = max(len(prompt) for prompt in prompts)
    pad = tokenizer.pad_token_id or 0
    ids = torch.tensor([[pad] * (length - len(p)) + list(p) for p in prompts])  # (prompts, length)
    mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts])  # (prompts, length)
    training = model.training
    model.eval()
    try:
        out = model.generate(
            input_ids=ids.to(model.device), attention_mask=mask.to(model.device), pad_token_id=pad,
            max_new_tokens=max_new_tokens, do_sample=False, temperature=None, top_p=None, top_k=None,
        )  # (prompts, length + new)  # fmt: skip
    finally:
        model.train(training)
    return tokenizer.batch_decode(out[:, length:], skip_special_tokens=True)


def write_samples(
    folder: Path, model: Any, base_model: Any, tokenizer: Any, rows: Any, count: int, max_new_tokens: int
) -> None:
    """Write the samples of a run; none where its rows have no prompts.

    Args:
        folder: of the run.
        model: the tuned model.
        base_model: the base of a full fine-tune, which has no adapter to disable; else None.
        tokenizer: of both.
        rows: the validation rows, tokenised.
        count: how many of them.
        max_new_tokens: of each answer.
    """
    chosen = sample_rows(rows, count)
    if not chosen:
        return
    prompts = [row["prompt"] for row in chosen]
    tuned = answers(model, tokenizer, prompts, max_new_tokens)
    with model.disable_adapter() if base_model is None else nullcontext():
        base = answers(model if base_model is None else base_model, tokenizer, prompts, max_new_tokens)
    texts = [{key: tokenizer.decode(row[key], skip_special_tokens=True) for key in row} for row in chosen]
    lines = [text | {"base": b, "tuned": t} for text, b, t in zip(texts, base, tuned, strict=True)]
    write_text(folder / FILE, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))

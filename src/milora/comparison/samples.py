"""What a model answers to the first validation prompts, beside its base: `samples.jsonl` of a run.

A line is {"prompt", "target", "base", "tuned"}: the tokens before the row's first trained one, the trained ones, and
what the two models write greedily; `picture` names the file that the prompt shows, where there is one. Rows whose every
token is trained have no prompt and are passed over.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from milora.comparison.validation import inputs_to
from milora.data.pictures import open_picture
from milora.models.atomic import write_text
from milora.models.pictures import Pictures
from milora.training.masking import IGNORED, IMAGE

FILE = "samples.jsonl"


def sample_rows(rows: Any, count: int) -> list[dict[str, Any]]:
    """The first rows that have a prompt: {"prompt", "target"} in tokens, and `IMAGE` of rows that show a picture.

    Args:
        rows: `input_ids` and `labels`, as `milora.training.masking.tokenise` makes them; None has none.
        count: at most so many.
    """
    found: list[dict[str, Any]] = []
    for row in rows or ():
        if len(found) == count:
            break
        trained = [i for i, label in enumerate(row["labels"]) if label != IGNORED]
        if trained and trained[0] > 0:
            start = trained[0]
            # A conversation's first answer: up to the next token that is not trained.
            end = next((i for i in range(start, len(row["labels"])) if row["labels"][i] == IGNORED), len(row["labels"]))
            shown = {IMAGE: row[IMAGE]} if row.get(IMAGE) else {}
            found.append({"prompt": row["input_ids"][:start], "target": row["input_ids"][start:end], **shown})
    return found


@torch.no_grad()
def answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    pixels: Tensor | None = None,
) -> list[str]:
    """What a model writes after each prompt, greedily; it is given back in the mode it came in.

    Args:
        model: a built causal or image-text model.
        tokenizer: its tokenizer.
        prompts: token ids, each of its own length.
        max_new_tokens: of each answer; it ends before that where the model ends it.
        pixels: (pictures, channels, height, width), in the order in which the prompts show them.
    """
    shown = {} if pixels is None else {"pixel_values": inputs_to(model, pixels)}
    length = max(len(prompt) for prompt in prompts)
    pad = tokenizer.pad_token_id or 0
    ids = torch.tensor([[pad] * (length - len(p)) + list(p) for p in prompts])  # (prompts, length)
    mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts])  # (prompts, length)
    training = model.training
    model.eval()
    try:
        out = model.generate(
            input_ids=ids.to(model.device), attention_mask=mask.to(model.device), pad_token_id=pad,
            max_new_tokens=max_new_tokens, do_sample=False, temperature=None, top_p=None, top_k=None, **shown,
        )  # (prompts, length + new)  # fmt: skip
    finally:
        model.train(training)
    return tokenizer.batch_decode(out[:, length:], skip_special_tokens=True)


def write_samples(
    folder: Path,
    model: Any,
    base_model: Any,
    tokenizer: Any,
    rows: Any,
    count: int,
    max_new_tokens: int,
    pictures: Pictures | None = None,
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
        pictures: how the models take pictures; None where they take none.
    """
    chosen = sample_rows(rows, count)
    if not chosen:
        return
    prompts, pixels = _prompts(chosen, pictures)
    tuned = answers(model, tokenizer, prompts, max_new_tokens, pixels)
    with model.disable_adapter() if base_model is None else nullcontext():
        base = answers(model if base_model is None else base_model, tokenizer, prompts, max_new_tokens, pixels)
    lines = [_text(row, tokenizer) | {"base": b, "tuned": t} for row, b, t in zip(chosen, base, tuned, strict=True)]
    write_text(folder / FILE, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def _prompts(rows: Sequence[dict[str, Any]], pictures: Pictures | None) -> tuple[list[list[int]], Tensor | None]:
    """The prompts with all tokens of their pictures, and those pictures."""
    prompts = [row["prompt"] for row in rows]
    if pictures is None:
        return prompts, None
    files = [row[IMAGE] for row in rows if IMAGE in row]
    pixels = pictures.pixels([open_picture(Path(file)) for file in files]) if files else None
    return [pictures.expand(prompt, prompt)[0] for prompt in prompts], pixels


def _text(row: dict[str, Any], tokenizer: Any) -> dict[str, str]:
    text = {key: tokenizer.decode(row[key], skip_special_tokens=True) for key in ("prompt", "target")}
    return text | ({"picture": Path(row[IMAGE]).name} if IMAGE in row else {})

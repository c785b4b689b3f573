"""Log-likelihoods that also say how many tokens they sum over, and how many of them the model puts first.

The harness's own numbers are a sum and whether all tokens were first. A task that wants more gets it as
attributes of these numbers, so that everything else of the harness stays as it is.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class SpanScore(tuple[float, bool]):
    """(log-likelihood, whether every token is the model's first choice), as the harness has it.

    Attributes:
        tokens: of the span.
        right: how many of them are the model's first choice, given the true ones before them.
    """

    tokens: int
    right: int

    def __new__(cls, loglikelihood: float, tokens: int, right: int) -> "SpanScore":
        made = super().__new__(cls, (loglikelihood, right == tokens))
        made.tokens, made.right = tokens, right
        return made


class TextScore(float):
    """The log-likelihood of a text.

    Attributes:
        tokens: of the text.
    """

    tokens: int

    def __new__(cls, loglikelihood: float, tokens: int) -> "TextScore":
        made = super().__new__(cls, loglikelihood)
        made.tokens = tokens
        return made


def span_scores(lm: Any, pairs: Sequence[tuple[str, str]], done: Callable[[], None]) -> list[SpanScore]:
    """The scores of spans, each after its context, tokenised and cut to the model's context as the harness does.

    Args:
        lm: the harness's Hugging Face model.
        pairs: (context, span); an empty context is the model's prefix token.
        done: called after each pair.
    """
    ids = [_ids(lm, context, span) for context, span in pairs]
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i][0]))  # longest first, so that memory runs out at once
    scores: dict[int, SpanScore] = {}
    for start in range(0, len(order), lm.batch_size):
        batch = order[start : start + lm.batch_size]
        rows = [torch.tensor(ids[i][0][:-1]) for i in batch]
        inputs = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)  # (batch, tokens), what is padded is not read
        logits = lm._model_call(inputs.to(lm.device))  # (batch, tokens, vocab)
        for i, row in zip(batch, logits, strict=True):
            whole, count = ids[i]
            scores[i] = _score(row[len(whole) - 1 - count : len(whole) - 1], torch.tensor(whole[-count:]))
            done()
    return [scores[i] for i in range(len(pairs))]


def _ids(lm: Any, context: str, span: str) -> tuple[list[int], int]:
    """The tokens of context and span, and how many of the last belong to the span."""
    before, tokens = lm._encode_pair(context, span) if context else ([lm.prefix_token_id], lm.tok_encode(span))
    whole = (before + tokens)[-(lm.max_length + 1) :]
    return whole, min(len(tokens), len(whole) - 1)


def _score(
    logits: Tensor,  # (tokens, vocab)
    targets: Tensor,  # (tokens,)
) -> SpanScore:
    targets = targets.to(logits.device)
    log_p = torch.log_softmax(logits.float(), dim=-1)  # (tokens, vocab)
    total = log_p.gather(-1, targets.unsqueeze(-1)).double().sum().item()
    return SpanScore(total, len(targets), int((log_p.argmax(dim=-1) == targets).sum()))

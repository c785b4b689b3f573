"""How far a tuned model has moved from what its base predicts on a text.

Kalajdzievski (arXiv:2401.05605), used by MiLoRA (arXiv:2406.09044, section 5.4), with T predicted tokens and
vocabulary v:

    L_f = -(1/T) sum_t sum_v p_base(v | x_<t) log p_ft(v | x_<t)  =  H(p_base) + KL(p_base || p_ft)

The floor of L_f is the base's own entropy, not zero, so the three numbers are given together. L_f of one base
model says nothing beside L_f of another; the KL does.

Blocks: the text is tokenised once, without special tokens, and cut into blocks of ``block`` tokens that do not
overlap; each block is a sequence of its own. Where the tokenizer itself begins a text with its BOS token, each
block begins with BOS and holds one text token fewer. The first token of a block is context only, so a block
predicts ``block - 1`` tokens. A rest shorter than a block is left out, unless it is all there is.

Log-probabilities are float32, from logits in the model's own dtype. At any time the logits of one batch are
held, of both models, and the float32 values of ``CHUNK`` tokens.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from milora.errors import MiloraError

CHUNK = 128  # tokens; at a vocabulary of 128,000 one float32 chunk is 64 MiB


@dataclass(frozen=True)
class Forgetting:
    """Means over the predicted tokens, in nats; standard errors over blocks, None for a single block."""

    cross_entropy: float
    cross_entropy_stderr: float | None
    floor: float
    kl: float
    kl_stderr: float | None
    base_loss: float
    tuned_loss: float
    loss_increase_stderr: float | None
    base_perplexity: float
    tuned_perplexity: float
    tokens: int
    blocks: int
    block: int

    def as_dict(self) -> dict[str, float | int | None]:
        """The numbers by name, for JSON."""
        return asdict(self)


def forgetting(
    model: Any,
    tokenizer: Any,
    text: str,
    *,
    base_model: Any = None,
    block: int = 512,
    max_tokens: int | None = None,
    batch_size: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Forgetting:
    """Cross-entropy of the tuned model against its base's predictions, with floor and KL.

    Args:
        model: the tuned model; with an adapter, its base is this model with the adapters disabled.
        tokenizer: of both.
        text: what is measured on; :func:`milora.analysis.read_text` reads a file.
        base_model: the base of a full fine-tune, which has no adapter to disable.
        block: tokens a sequence, BOS included.
        max_tokens: use no more than so many tokens of the text.
        batch_size: blocks a forward pass.
        progress: called with (blocks done, all blocks).

    Raises:
        MiloraError: no way to the base, a block over the model's context, too little text, or a prediction
            that is not finite.
    """
    if base_model is None and not hasattr(model, "disable_adapter"):
        raise MiloraError("forgetting: the model has no adapter to disable; pass its base as base_model")
    _check_sizes(model, block, max_tokens, batch_size)
    blocks = cut_into_blocks(tokenizer, text, block, max_tokens)  # (blocks, block)
    parts = []
    with _eval_mode(model), _eval_mode(base_model), torch.no_grad():
        for ids in blocks.split(batch_size):
            parts.append(_measure(model, base_model, ids))  # (batch, 5)
            if progress is not None:
                progress(sum(len(part) for part in parts), len(blocks))
    sums = torch.cat(parts)  # (blocks, 5), sums over each block's predicted tokens
    if not torch.isfinite(sums).all():
        first = int((~torch.isfinite(sums)).any(dim=1).nonzero()[0]) + 1
        raise MiloraError(f"forgetting: the models' predictions are not finite in block {first} of {len(blocks)}")
    return _summary(sums, predicted=blocks.shape[1] - 1, block=block)


def cut_into_blocks(tokenizer: Any, text: str, block: int, max_tokens: int | None = None) -> Tensor:
    """Token ids of the blocks of a text.

    Returns:
        (blocks, block), or (1, fewer) when the text is shorter than one block.

    Raises:
        MiloraError: fewer than two tokens.
    """
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"][:max_tokens]
    bos = tokenizer.bos_token_id
    first = tokenizer("a")["input_ids"][:1]
    prefix = [bos] if bos is not None and first == [bos] else []
    step = block - len(prefix)
    count = max(len(ids) // step, 1)
    rows = [prefix + ids[i * step : (i + 1) * step] for i in range(count)]
    if len(rows[0]) < 2:
        raise MiloraError(f"forgetting: the text has {len(ids)} tokens, too few to predict one")
    return torch.tensor(rows)


def _check_sizes(model: Any, block: int, max_tokens: int | None, batch_size: int) -> None:
    context = getattr(model.config, "max_position_embeddings", None)
    if block < 2 or (context is not None and block > context):
        raise MiloraError(f"forgetting: block: got {block}, allowed: 2 to {context or 'any'} (the model's context)")
    if max_tokens is not None and max_tokens < 2:
        raise MiloraError(f"forgetting: max_tokens: got {max_tokens}, allowed: 2 or more")
    if batch_size < 1:
        raise MiloraError(f"forgetting: batch_size: got {batch_size}, allowed: 1 or more")


def _measure(
    model: Any,
    base_model: Any,
    ids: Tensor,  # (batch, block)
) -> Tensor:  # (batch, 5)
    tuned_logits = _logits(model, ids)  # (batch, block - 1, vocab)
    base_context: AbstractContextManager[Any] = nullcontext() if base_model is not None else model.disable_adapter()
    with base_context:
        base_logits = _logits(model if base_model is None else base_model, ids)
    rows = [
        sums_of_block(base, tuned, targets)
        for base, tuned, targets in zip(base_logits, tuned_logits, ids[:, 1:], strict=True)
    ]
    return torch.stack(rows)


def _logits(model: Any, ids: Tensor) -> Tensor:
    return model(input_ids=ids.to(model.device), use_cache=False).logits[:, :-1]


def sums_of_block(
    base_logits: Tensor,  # (tokens, vocab)
    tuned_logits: Tensor,  # (tokens, vocab)
    targets: Tensor,  # (tokens,)
) -> Tensor:  # (5,), float64
    """Sums over tokens: cross-entropy, floor, KL, base's and tuned model's loss on the text's own tokens."""
    total = torch.zeros(5, dtype=torch.float64)
    device = base_logits.device
    for base, tuned, x in zip(
        base_logits.split(CHUNK), tuned_logits.split(CHUNK), targets.to(device).split(CHUNK), strict=True
    ):
        log_p = torch.log_softmax(base.float(), dim=-1)  # (chunk, vocab)
        log_q = torch.log_softmax(tuned.to(device).float(), dim=-1)  # (chunk, vocab)
        p = log_p.exp()
        # A KL is not negative; what rounding leaves below zero is zero.
        kl = _expectation(p, log_p - log_q).clamp_min(0)
        gold = x.unsqueeze(-1)
        per_token = [
            -_expectation(p, log_q),
            -_expectation(p, log_p),
            kl,
            -log_p.gather(-1, gold).squeeze(-1),
            -log_q.gather(-1, gold).squeeze(-1),
        ]
        total += torch.stack([values.double().sum() for values in per_token]).cpu()
    return total


def _expectation(p: Tensor, values: Tensor) -> Tensor:
    # A masked logit is -inf in both models: its probability is 0 and it adds nothing, where 0 * inf is NaN.
    return (p * values).masked_fill(p == 0, 0).sum(dim=-1)


def _summary(sums: Tensor, predicted: int, block: int) -> Forgetting:
    means = sums / predicted  # (blocks, 5), means of each block: all blocks have the same length
    cross_entropy, floor, kl, base_loss, tuned_loss = means.mean(dim=0).tolist()
    return Forgetting(
        cross_entropy=cross_entropy,
        cross_entropy_stderr=_stderr(means[:, 0]),
        floor=floor,
        kl=kl,
        kl_stderr=_stderr(means[:, 2]),
        base_loss=base_loss,
        tuned_loss=tuned_loss,
        loss_increase_stderr=_stderr(means[:, 4] - means[:, 3]),
        base_perplexity=_perplexity(base_loss),
        tuned_perplexity=_perplexity(tuned_loss),
        tokens=predicted * len(sums),
        blocks=len(sums),
        block=block,
    )


def _stderr(values: Tensor) -> float | None:  # (blocks,)
    return (values.std() / math.sqrt(len(values))).item() if len(values) > 1 else None


def _perplexity(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf  # exp overflows a float at 709


@contextmanager
def _eval_mode(model: Any) -> Iterator[None]:
    if model is None:
        yield
        return
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)

"""Weights for a mixture of adapters, found on validation rows by the cross-entropy method (Transformer^2, section 3.2).

    W' = W + sum_k a_k dW_k          a in [0, 1]^K, one number an adapter

The method draws a population from N(mean, std^2), clipped to [0, 1], keeps the best fifth, and draws the next one from
their mean and standard deviation. It starts at mean 1/K and std 0.5, and the best so far stays in the population, as in
the authors' code (SakanaAI/self-adaptive-llms, 03a41ae). There the rows come out of the evaluated test split; here the
caller gives validation rows, and the score is the mean log-probability of their answers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from milora.adapters import load_mixture
from milora.data import load_examples
from milora.errors import MiloraError
from milora.models.load import load_model, load_tokenizer
from milora.training.masking import IGNORED, tokenise

POPULATION, ELITE, STD = 32, 0.2, 0.5


@dataclass(frozen=True)
class Mixture:
    """What a search found.

    Attributes:
        weights: the best a that was tried.
        score: its score.
        history: the best score after each iteration; it never falls.
        tried: how many mixtures were scored.
    """

    weights: list[float]
    score: float
    history: list[float]
    tried: int


def cross_entropy_method(
    score: Callable[[list[float]], float],
    count: int,
    *,
    iterations: int,
    generator: torch.Generator,
    population: int = POPULATION,
    elite: float = ELITE,
) -> Mixture:
    """The weights with the highest score that the method finds.

    Args:
        score: of one mixture, the higher the better; NaN counts as the worst.
        count: K, how many numbers a mixture has.
        iterations: populations drawn.
        generator: of the draws.
        population: mixtures in each.
        elite: the share of them from which the next is drawn.
    """
    mean, std = torch.full((count,), 1 / count), torch.full((count,), STD)
    best, top, history, tried = mean.tolist(), _finite(score(mean.tolist())), [], 1
    for _ in range(iterations):
        drawn = (mean + std * torch.randn(population, count, generator=generator)).clamp(0, 1)
        drawn[0] = torch.tensor(best)
        scores = [top, *(_finite(score(a)) for a in drawn[1:].tolist())]
        tried += population - 1
        order = sorted(range(population), key=lambda i: -scores[i])
        if scores[order[0]] > top:
            best, top = drawn[order[0]].tolist(), scores[order[0]]
        chosen = drawn[order[: max(1, int(elite * population))]]
        mean, std = chosen.mean(0), chosen.std(0, correction=0)
        history.append(top)
    return Mixture(best, top, history, tried)


def find_weights(
    adapters: Sequence[Path],
    model_name_or_path: str,
    validation: str,
    *,
    dataset_format: str = "auto",
    rows: int = 10,
    iterations: int = 50,
    seed: int = 0,
    force: bool = False,
) -> Mixture:
    """The weights of a mixture of saved adapters under which the answers of validation rows are likeliest.

    Args:
        adapters: their folders.
        model_name_or_path: their base.
        validation: a local file or a hub name.
        dataset_format: of its rows; see `milora.data.load_examples`.
        rows: how many are drawn.
        iterations: populations of the search.
        seed: of the rows and of the search.
        force: take a base with another fingerprint.

    Raises:
        MiloraError: rows that are called a test set; see `load_model`, `load_adapter` and `load_examples`.
    """
    if re.search(r"(^|[^a-z])test([^a-z]|$)", Path(validation).stem.lower()):
        raise MiloraError(f"validation: got {validation}, allowed rows that no result is reported on")
    tokenizer = load_tokenizer(model_name_or_path)
    examples = load_examples(validation, format=dataset_format, limit=rows, seed=seed)
    tokenised, _ = tokenise(examples, tokenizer, loss_on="completion", max_length=None, name="validation")
    model, set_weights = load_mixture(load_model(model_name_or_path, dtype="float32"), adapters, force=force)
    score = answer_log_probability(model, list(tokenised), set_weights)  # pyright: ignore[reportArgumentType]
    generator = torch.Generator().manual_seed(seed)
    return cross_entropy_method(score, len(adapters), iterations=iterations, generator=generator)


def _finite(score: float) -> float:
    return -math.inf if math.isnan(score) else score


def answer_log_probability(
    model: Any, rows: Sequence[dict[str, list[int]]], set_weights: Callable[[list[float]], None], batch_size: int = 8
) -> Callable[[list[float]], float]:
    """A score: the mean log-probability of the labelled tokens under a mixture.

    Args:
        model: a causal language model.
        rows: `input_ids` and `labels` of each row, as `milora.training.masking.tokenise` makes them.
        set_weights: puts a mixture into the model.
        batch_size: rows in one forward pass.
    """
    batches = [_batch(rows[i : i + batch_size], model.device) for i in range(0, len(rows), batch_size)]

    @torch.no_grad()
    def score(weights: list[float]) -> float:
        set_weights(weights)
        model.eval()
        total, tokens = 0.0, 0
        for ids, labels, mask in batches:
            logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
            wanted = labels[:, 1:]
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="sum"
            )
            total, tokens = total - float(loss), tokens + int((wanted != IGNORED).sum())
        return total / max(tokens, 1)

    return score


def _batch(rows: Sequence[dict[str, list[int]]], device: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    length = max(len(row["input_ids"]) for row in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.int64)
    labels, mask = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
    for i, row in enumerate(rows):
        n = len(row["input_ids"])
        ids[i, :n], labels[i, :n], mask[i, :n] = torch.tensor(row["input_ids"]), torch.tensor(row["labels"]), 1
    return ids.to(device), labels.to(device), mask.to(device)

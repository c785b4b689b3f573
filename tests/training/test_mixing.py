"""The cross-entropy method on a score with a known best, and the score against the model's own loss."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from milora.training.mixing import answer_log_probability, cross_entropy_method

BEST = [0.7, 0.2, 0.95]


def score(a: list[float]) -> float:
    return -sum((x - b) ** 2 for x, b in zip(a, BEST, strict=True))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_it_finds_the_best_mixture():
    found = cross_entropy_method(score, 3, iterations=30, generator=seeded())
    assert found.weights == pytest.approx(BEST, abs=0.02)
    assert found.score == score(found.weights)
    assert found.history == sorted(found.history) and len(found.history) == 30
    assert found.tried == 1 + 30 * 31


def test_it_starts_in_the_middle_and_stays_within_bounds():
    asked: list[list[float]] = []

    def remember(a: list[float]) -> float:
        asked.append(a)
        return sum(a)  # the best lies on the edge

    found = cross_entropy_method(remember, 2, iterations=20, generator=seeded())
    assert asked[0] == [0.5, 0.5]
    assert all(0 <= x <= 1 for a in asked for x in a)
    assert found.weights == [1.0, 1.0]


def test_the_best_so_far_stays_in_the_population():
    """With an elite of one, a start that is never beaten is all that is drawn from then on."""
    asked: list[list[float]] = []

    def unbeaten(a: list[float]) -> float:
        asked.append(a)
        return float(len(asked) == 1)

    cross_entropy_method(unbeaten, 2, iterations=2, generator=seeded(), population=4, elite=0.25)
    assert asked[4:] == [[0.5, 0.5]] * 3
    assert [0.5, 0.5] not in asked[1:4]


def test_a_mixture_without_a_score_is_never_chosen():
    found = cross_entropy_method(
        lambda a: math.nan if a[0] > 0.4 else a[0], 2, iterations=10, generator=seeded(), population=16
    )
    assert 0.3 < found.weights[0] <= 0.4
    # The start of a search whose scores are all NaN is what is left.
    assert cross_entropy_method(lambda a: math.nan, 2, iterations=2, generator=seeded()).weights == [0.5, 0.5]


def test_the_score_is_the_models_own_loss_on_the_labelled_tokens(tiny_llama):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    ids = torch.randint(3, 250, (3, 9), generator=seeded(1))
    labels = ids.clone()
    labels[:, :4] = -100
    lengths, rows = (9, 7, 8), []
    for i, n in enumerate(lengths):
        rows.append({"input_ids": ids[i, :n].tolist(), "labels": labels[i, :n].tolist()})
    given: list[list[float]] = []
    found = answer_log_probability(model, rows, given.append, batch_size=2)([0.25, 0.75])
    assert given == [[0.25, 0.75]]
    with torch.no_grad():
        losses = [
            (float(model(input_ids=ids[i : i + 1, :n], labels=labels[i : i + 1, :n]).loss), n - 4)
            for i, n in enumerate(lengths)
        ]
    assert found == pytest.approx(-sum(x * n for x, n in losses) / sum(n for _, n in losses), rel=1e-5)

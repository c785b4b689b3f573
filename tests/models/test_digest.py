"""Weights named by their values."""

import pytest
import torch

from milora.models import digest
from milora.models.digest import weight_digest


@pytest.fixture
def W() -> torch.Tensor:
    return torch.randn(40, 24, generator=torch.Generator().manual_seed(1))


def test_equal_values_have_one_key_in_any_dtype(W):
    short = W.bfloat16()
    assert weight_digest(short) == weight_digest(short.float())
    half = W.half()
    assert weight_digest(half).key == weight_digest(half.float()).key


def test_values_that_bfloat16_cannot_hold_share_the_rounded_name_alone(W):
    exact, short = weight_digest(W), weight_digest(W.bfloat16())
    assert exact.rounded == short.rounded == short.key
    assert exact.key != short.key
    assert weight_digest(W.double()).key not in (exact.key, short.key)


def test_what_differs_has_another_key(W):
    changed = W.clone()
    changed[39, 23] += 1e-6
    others = [W, changed, W.T, W.reshape(24, 40), W.reshape(-1), -W, W[:20], W.flip(0)]
    assert len({weight_digest(o).key for o in others}) == len(others)
    small = W.bfloat16()
    others = [small, small.T, small.reshape(24, 40), small.reshape(-1)]
    assert len({weight_digest(o).key for o in others}) == len(others)


def test_strides_do_not_matter(W):
    assert weight_digest(W.T.contiguous().T) == weight_digest(W)
    assert weight_digest(W[::2, 1::3]) == weight_digest(W[::2, 1::3].clone())
    assert weight_digest(W.bfloat16().T.contiguous().T) == weight_digest(W.bfloat16())


@pytest.mark.parametrize("size", [1, 7, 24, 100, 10_000])
def test_the_pieces_in_which_it_is_read_do_not_matter(W, monkeypatch, size):
    # Only the last row is out of bfloat16's reach, so that the first pieces are taken for bfloat16's.
    late = W.bfloat16().float()
    late[39] = W[39]
    weights = [W, late, late.T, W.bfloat16(), late.reshape(-1), W[:, ::2], torch.zeros(3, 0), torch.tensor(2.5)]
    expected = [weight_digest(w) for w in weights]
    monkeypatch.setattr(digest, "_CHUNK", size)
    assert [weight_digest(w) for w in weights] == expected
    assert expected[1].key != expected[1].rounded


def test_nothing_but_numbers_has_a_name_too():
    weights = [torch.full((2, 2), v) for v in (float("nan"), float("inf"), 0.0, 1.0)]
    assert len({weight_digest(w).key for w in weights}) == 4
    assert weight_digest(torch.arange(6, dtype=torch.uint8)) == weight_digest(torch.arange(6.0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_device_does_not_matter(W):
    for weight in (W, W.T, W.bfloat16()):
        assert weight_digest(weight.cuda()) == weight_digest(weight)

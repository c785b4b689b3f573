"""Cores applied against cores written out, for every pattern, with their gradients; and a count for each."""

import pytest
import torch

from milora.errors import MiloraError
from milora.methods.core import Banded, Dense, Diagonal, Scattered, band_positions, band_size


def drawn(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape)))


def scattered(q, size):
    flat = torch.randperm(q * q, generator=torch.Generator().manual_seed(2))[:size]
    return Scattered(q, size), torch.stack([flat // q, flat % q]).to(torch.int32)


CORES = [
    (Dense(7), None),
    (Diagonal(7), None),
    *((Banded(q, d), None) for q, d in [(7, 0), (7, 1), (7, 6), (40, 3), (64, 16), (100, 20), (33, 1)]),
    scattered(9, 1),
    scattered(9, 20),
    scattered(9, 81),
]


@pytest.mark.parametrize(("core", "indices"), CORES, ids=str)
def test_a_core_is_applied_as_it_is_written_out(core, indices):
    c = drawn(core.size).requires_grad_()
    z = drawn(3, 5, core.q)
    C = core.dense(c, indices)
    assert C.shape == (core.q, core.q) and int((C != 0).sum()) == core.size
    assert torch.allclose(core.apply(c, z, indices), z @ C.T, atol=1e-12)
    weights = drawn(3, 5, core.q).flip(0)
    found = torch.autograd.grad((core.apply(c, z, indices) * weights).sum(), c)[0]
    wanted = torch.autograd.grad(((z @ C.T) * weights).sum(), c)[0]
    assert torch.allclose(found, wanted, atol=1e-12)


@pytest.mark.parametrize(("core", "indices"), CORES, ids=str)
def test_a_core_takes_a_single_vector(core, indices):
    c, z = drawn(core.size), drawn(core.q)
    assert torch.allclose(core.apply(c, z, indices), core.dense(c, indices) @ z, atol=1e-12)


@pytest.mark.parametrize(("q", "d"), [(5, 0), (5, 2), (5, 4), (200, 16)])
def test_the_band_has_the_papers_count(q, d):
    i, j = band_positions(q, d)
    assert len(i) == band_size(q, d) == q * (2 * d + 1) - d * (d + 1)
    assert int((i - j).abs().max()) == d
    # The paper's own formula, D k + (D - k) (k + 1) for D triplets and k off-diagonals.
    assert band_size(q, d) == q * d + (q - d) * (d + 1)


def test_banded_never_builds_the_square(monkeypatch):
    q, d = 3000, 2
    largest = []
    new_zeros = torch.Tensor.new_zeros
    monkeypatch.setattr(
        torch.Tensor, "new_zeros", lambda self, *shape: (largest.append(shape), new_zeros(self, *shape))[1]
    )
    Banded(q, d).apply(torch.ones(band_size(q, d)), torch.ones(2, q))
    assert largest
    assert all(torch.Size(shape).numel() < q * 60 for shape in largest)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        (torch.zeros(2, 2), r"got \(2, 2\) torch.float32, allowed \(2, 2\) whole numbers"),
        (torch.zeros(2, 3, dtype=torch.int32), r"got \(2, 3\) torch.int32"),
        (torch.tensor([[0, 1], [0, 5]]), "got 0 to 5, allowed 0 to 4"),
        (torch.tensor([[0, -1], [0, 1]]), "got -1 to 1"),
        (torch.tensor([[3, 3], [4, 4]]), "got 1 positions twice"),
    ],
)
def test_positions_that_cannot_be_are_refused(indices, message):
    Scattered(5, 2).check(torch.tensor([[0, 4], [4, 0]]))
    with pytest.raises(MiloraError, match=message):
        Scattered(5, 2).check(indices)

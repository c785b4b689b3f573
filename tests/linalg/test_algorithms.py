"""Each algorithm by itself, without the safer ones that would take its place where it fails."""

import pytest
import torch
from torch import Tensor

from linalg.matrices import gaussian, with_spectrum
from milora.linalg import cholesky, golub_kahan, gram, lu
from milora.linalg.krylov import KrylovSpace, converge, orthonormal
from milora.linalg.parts import Part

R = 8


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def gapped(shape: tuple[int, int], inner: Tensor, outer: Tensor) -> Tensor:
    return with_spectrum(shape, torch.cat([inner, outer]).double()).float()


def of_the_bottom(name: str) -> Part:
    """The bottom of a weight whose values below the edge, at 0.1, are half of those above, at 0.2."""
    spectrum = (torch.linspace(1, 0.2, 292), torch.linspace(0.1, 0.05, R))
    if name == "lu":
        return lu.bottom(gapped((300, 300), *spectrum), R, 8, 1e-4, generator())
    return cholesky.bottom(gapped((400, 300), *spectrum), R, 8, 1e-4, generator(), precision=getattr(torch, name))


@pytest.mark.parametrize("name", ["lu", "float32", "float64"])
def test_the_probe_of_the_bottom_is_the_next_value(name):
    part = of_the_bottom(name)
    assert part.probe is not None and 1.999 <= part.probe <= 2.4  # a Ritz value, from above
    assert torch.allclose(part.S, torch.linspace(0.1, 0.05, R).double(), rtol=1e-4)


def test_the_probe_of_the_top_is_the_next_value():
    W = gapped((400, 300), torch.linspace(3, 2, R), torch.cat([torch.ones(1), torch.linspace(0.5, 0.1, 291)]))
    part = golub_kahan.top(W, R, 8, 3e-6, generator())
    assert part.probe == pytest.approx(0.5, rel=0.05)
    assert torch.allclose(part.S, torch.linspace(3, 2, R).double(), rtol=1e-4)


def test_a_flat_edge_is_shifted(monkeypatch: pytest.MonkeyPatch):
    shifts: list[float] = []
    shifted = cholesky._shifted

    def watched(*args):
        found = shifted(*args)
        shifts.append(found[2])
        return found

    monkeypatch.setattr(cholesky, "_shifted", watched)
    W = with_spectrum((700, 320), torch.arange(1, 321).double() ** -0.3)
    part = cholesky.bottom(W.float(), R, 8, 1e-4, generator(), precision=torch.float64)
    smallest = 320.0**-0.6
    assert shifts and all(0.9 * smallest < x < smallest for x in shifts)
    exact = torch.arange(313, 321).double() ** -0.6
    assert float(part.S.square().sum() / exact.sum() - 1) < 1e-4 and part.estimate < 1e-4


def test_ritz_vectors_are_orthonormal_beyond_the_basis():
    W = gaussian((300, 200)).float()
    inverse = torch.linalg.inv(W.T @ W)
    space = KrylovSpace(lambda Q: inverse @ Q, W, orthonormal(gaussian((200, 8)).float()))
    converge(space, R, 1e-4)
    # A basis that is orthonormal to no more than this.
    space.Qt *= 1 + 1e-3 * gaussian((space.Qt.shape[0], 1)).float()
    space.measured = 0
    ritz = space.ritz(R)
    assert float(torch.linalg.matrix_norm(ritz.V.T @ ritz.V - torch.eye(R))) < 1e-6
    assert torch.allclose(ritz.theta, torch.linalg.svdvals(W)[-R:].flip(0).square().double(), rtol=1e-3)


def test_the_left_vectors_of_zeros_are_in_the_left_null_space():
    W = gaussian((60, 20)) @ gaussian((20, 30), seed=1)
    part = gram.part(W, torch.arange(15, 30), generator())
    U = part.U
    assert float((W.T @ U[:, 5:]).abs().max()) < 1e-10
    assert float(torch.linalg.matrix_norm(U.T @ U - torch.eye(15))) < 1e-10


@pytest.mark.parametrize("indices", [[1, 4], [0, 29], [28], [5, 6, 12]], ids=str)
def test_gram_finds_the_values_at_the_places_asked_for(indices):
    W = gaussian((40, 30))
    part = gram.part(W, torch.tensor(indices), generator())
    assert torch.allclose(part.S, torch.linalg.svdvals(W)[indices], rtol=1e-10)

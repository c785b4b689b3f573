"""Which subspace each method takes: the papers' formulas in float64 numpy; and what the registry holds."""

import numpy as np
import pytest
import torch

from milora.errors import MiloraError
from milora.linalg import full
from milora.methods import METHODS, Choice, get_method

SHAPES = [(24, 16), (16, 24), (20, 20)]
R, SCALE = 4, 2.0


def weight(shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def indices(name, k, choice_seed=11):
    if name == "milora":
        return np.arange(k - R, k)
    if name == "pissa":
        return np.arange(R)
    if name == "random_components":
        return np.sort(torch.randperm(k, generator=torch.Generator().manual_seed(choice_seed))[:R].numpy())
    raise AssertionError(name)


def test_the_registry_finds_every_file():
    assert set(METHODS) == {"milora", "pissa", "random_components", "mica"}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["milora", "pissa", "random_components"])
def test_square_root_split_is_the_papers(name, shape):
    W = weight(shape)
    factors = METHODS[name].factors(full(W), Choice(R, SCALE, generator=torch.Generator().manual_seed(11)))
    U, S, Vt = np.linalg.svd(W.numpy(), full_matrices=False)
    i = indices(name, min(shape))
    part = U[:, i] @ np.diag(S[i]) @ Vt[i]
    assert np.allclose(SCALE * factors.L0.numpy() @ factors.R0.numpy(), part, atol=1e-12)
    root = np.sqrt(S[i] / SCALE)
    assert np.allclose(np.linalg.norm(factors.L0.numpy(), axis=0), root, atol=1e-12)
    assert np.allclose(np.linalg.norm(factors.R0.numpy(), axis=1), root, atol=1e-12)
    assert np.allclose(np.abs(factors.L0.numpy()), np.abs(U[:, i] * root), atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_mica_freezes_the_minor_left_vectors(shape):
    W = weight(shape)
    factors = METHODS["mica"].factors(full(W), Choice(R, SCALE))
    U = np.linalg.svd(W.numpy(), full_matrices=False)[0]
    assert np.allclose(np.abs(factors.L0.numpy()), np.abs(U[:, -R:]), atol=1e-10)
    assert factors.R0 is None


def test_middle_components_are_the_central_ones():
    W = torch.diag(torch.arange(10.0, 0.0, -1.0))
    factors = METHODS["random_components"].factors(full(W), Choice(R, 1.0, components="middle"))
    assert torch.allclose((factors.L0 @ factors.R0).diagonal(), torch.tensor([0.0, 0, 0, 7, 6, 5, 4, 0, 0, 0]))


def test_random_components_follow_their_seed():
    W = weight((30, 30))
    draw = [
        METHODS["random_components"].factors(full(W), Choice(R, 1.0, generator=torch.Generator().manual_seed(s))).L0
        for s in (1, 1, 2)
    ]
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])


@pytest.mark.parametrize(
    ("name", "count"), [("milora", 7 * 40), ("pissa", 7 * 40), ("random_components", 7 * 40), ("mica", 7 * 16)]
)
def test_counts_are_the_papers_formulas(name, count):
    assert METHODS[name].count(24, 16, 7) == count


@pytest.mark.parametrize("name", ["milora", "random_components", "mica"])
def test_zero_singular_values_still_get_a_gradient(name):
    """With r chosen values of exactly zero, R_i moves: its gradient s L_i^T G is not zero."""
    W = weight((20, 12)).float()
    W[:, 6:] = 0  # rank 6 of 12
    choice = Choice(12, 1.0, generator=torch.Generator().manual_seed(0))
    factors = METHODS[name].factors(full(W), choice)
    G = torch.randn(20, 12, generator=torch.Generator().manual_seed(1))
    gradient = (factors.L0.T @ G).norm(dim=1)  # (r,) of R at the start
    assert bool((gradient > 1e-2).all())
    if name != "mica":
        assert factors.dead == 6
        assert torch.allclose(factors.L0 @ factors.R0, W, atol=1e-5)


def test_an_unknown_method_names_the_nearest():
    with pytest.raises(MiloraError, match="did you mean 'milora'"):
        get_method("miolra")

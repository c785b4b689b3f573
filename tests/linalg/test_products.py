"""Products and triangular solves, whichever library computes them, against plain ones in float64."""

import pytest
import torch

from linalg.matrices import gaussian
from milora.linalg import products, triangular
from milora.linalg.parts import image

SHAPES = [(700, 500), (500, 700), (900, 300), (40, 30)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_are_right_in_either_order_of_the_entries(shape, transposed, dtype, monkeypatch):
    monkeypatch.setattr(products, "_PANEL", 2**17)  # so that a Gram matrix comes of several panels
    W = gaussian(shape).to(dtype)
    A = W.T if transposed else W
    X = gaussian((A.shape[1], 7), seed=1)
    exact, G = A.double() @ X, A.double().T @ A.double()
    allowed = 1e-5 if dtype == torch.float32 else 1e-12
    for found in (products.times(A, X.to(dtype)), products.few(A, X.to(dtype))):
        assert found.dtype == dtype and torch.allclose(found.double(), exact, atol=allowed * A.shape[1], rtol=0)
    assert torch.allclose(products.gram(A).double().tril(), G.tril(), atol=allowed * A.shape[0], rtol=0)
    assert torch.allclose(image(A, X), exact, atol=1e-11, rtol=0)


def test_a_large_weight_is_multiplied_by_onednn():
    """The test above is of both libraries only where this is so."""
    assert products._by_onednn(torch.ones(700, 500)) == products._X86
    assert not products._by_onednn(torch.ones(40, 30)) and not products._by_onednn(torch.ones(700, 500).T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_solves(dtype):
    W, X = gaussian((60, 60)).to(dtype), gaussian((60, 5), seed=1).to(dtype)
    factors = triangular.LU(W)
    assert torch.allclose(W @ factors.solve(X), X, atol=1e-3 if dtype == torch.float32 else 1e-10)
    assert torch.allclose(W.T @ factors.solve_transposed(X), X, atol=1e-3 if dtype == torch.float32 else 1e-10)
    G = W.T @ W + torch.eye(60, dtype=dtype)
    lower = triangular.cholesky(G.tril() + 100 * G.triu(1))  # the upper triangle may hold anything
    assert lower is not None and torch.allclose(lower.tril() @ lower.tril().T, G, rtol=1e-4)
    assert torch.allclose(G @ triangular.solve(lower, X), X, atol=1e-3)


def test_what_is_not_positive_definite_has_no_factor():
    assert triangular.cholesky(torch.diag(torch.tensor([1.0, -1.0, 2.0]))) is None

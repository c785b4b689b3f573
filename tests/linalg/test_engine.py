"""The decomposition: against float64 LAPACK, its signs, its parts, its refusals."""

import numpy as np
import pytest
import torch

from milora.errors import MiloraError
from milora.linalg import bottom, full, take, top


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (32, 32), (1, 7), (7, 1)])
def test_equals_float64_lapack(shape):
    W = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    found = full(W)
    expected = np.linalg.svd(W.double().numpy(), compute_uv=False)
    assert np.allclose(found.S.numpy(), expected, rtol=0, atol=1e-6 * expected[0])
    assert torch.allclose(found.U @ torch.diag(found.S) @ found.Vh, W, atol=2e-6 * float(expected[0]))
    assert bool((found.S[:-1] >= found.S[1:]).all())


def test_signs_are_fixed():
    W = torch.randn(20, 12, generator=torch.Generator().manual_seed(2))
    found = full(W)
    largest = found.U.gather(0, found.U.abs().argmax(0)[None])[0]
    assert bool((largest > 0).all())
    # -W has the same left vectors under the convention, so that only the right ones may turn.
    other = full(-W)
    assert torch.allclose(other.U, found.U, atol=1e-5)
    assert torch.allclose(other.Vh, -found.Vh, atol=1e-5)


def test_parts_are_the_triplets_they_name():
    found = full(torch.diag(torch.arange(9.0, 0.0, -1.0)))
    assert found.top(2).S.tolist() == [9, 8]
    assert found.bottom(2).S.tolist() == [2, 1]
    assert found.middle(3).S.tolist() == [6, 5, 4]
    taken = found.take(torch.tensor([0, 4, 8]))
    assert taken.S.tolist() == [9, 5, 1]
    assert torch.equal(taken.U, found.U[:, [0, 4, 8]])
    assert torch.equal(taken.Vh, found.Vh[[0, 4, 8]])


def test_low_precision_is_upcast_and_float64_stays():
    W = torch.randn(8, 8, generator=torch.Generator().manual_seed(3))
    assert full(W.bfloat16()).S.dtype == torch.float32
    assert full(W.double()).S.dtype == torch.float64


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_refuses_what_is_not_finite(bad):
    W = torch.ones(3, 3)
    W[1, 1] = bad
    with pytest.raises(MiloraError, match="NaN or Inf"):
        full(W)


@pytest.mark.parametrize("shape", [(3,), (0, 4), (2, 2, 2)])
def test_refuses_what_is_no_matrix(shape):
    with pytest.raises(MiloraError, match="matrix"):
        full(torch.ones(shape))


@pytest.mark.parametrize("r", [0, 4])
def test_refuses_a_rank_it_does_not_have(r):
    with pytest.raises(MiloraError, match=f"got {r}, allowed 1 to 3"):
        full(torch.eye(3)).bottom(r)


@pytest.mark.parametrize("ask", [bottom, top])
@pytest.mark.parametrize("shape", [(300, 300), (40, 30)], ids=str)
def test_the_resolution_is_of_the_largest_value_and_in_the_weights_scale(ask, shape):
    W = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    exact = float(torch.linalg.svdvals(W)[0]) * torch.finfo(torch.float32).eps * max(shape) ** 0.5
    found = ask(W, 3).resolution
    assert 0.5 * exact <= found <= 1.001 * exact
    assert ask(W * 2.0**40, 3).resolution == pytest.approx(found * 2.0**40)
    assert ask(W * 2.0**-40, 3).resolution == pytest.approx(found * 2.0**-40)


@pytest.mark.parametrize("shape", [(300, 300), (400, 300), (40, 30)], ids=str)
def test_a_default_device_is_no_matter(shape):
    W = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    with torch.device("meta"):
        found = [bottom(W, 3), top(W, 3), take(W, torch.tensor([1, 4], device="cpu")), full(W), full(W).bottom(2)]
    assert len(found) == 5 and all(x.U.device.type == "cpu" for x in found)


def test_take_refuses_what_is_no_matrix():
    with pytest.raises(MiloraError, match="matrix"):
        take(torch.ones(3), torch.tensor([0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [100, 400])
def test_all_triplets_of_a_larger_weight_pass_at_the_first_try(n, dtype):
    W = torch.randn(n, n, dtype=dtype, generator=torch.Generator().manual_seed(5))
    found = full(W)
    assert found.certificate.refused == ()
    assert torch.allclose((found.U * found.S) @ found.Vh, W, atol=1e-5 if dtype == torch.float32 else 1e-12)

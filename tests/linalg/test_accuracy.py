"""Every class of matrix against float64 LAPACK: captured energy, residuals, orthonormality, null spaces, signs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from linalg.matrices import CLASSES, gaussian, with_spectrum
from milora.errors import MiloraError
from milora.linalg import SVD, bottom, full, take, top

EPS = torch.finfo(torch.float32).eps
# Square, tall and wide ones that the iterative algorithms take, and ones so small that they do not.
SHAPES = [(320, 320), (700, 320), (320, 700), (48, 32), (32, 32)]


def judge(W: torch.Tensor, found: SVD, exact: torch.Tensor, sign: int) -> None:
    """What engine.py promises of a part of W (m, n), float64, whose exact singular values are `exact` (r,).

    Args:
        sign: 1 where captured energy may exceed the optimum (bottom), -1 where it may fall short (top).
    """
    U, S, V = found.U.double(), found.S.double(), found.Vh.double().T
    r, largest = len(found), float(torch.linalg.matrix_norm(W, 2)) or 1.0
    optimum = float(exact.square().sum())
    allowed = 1e-4 * optimum + r * (4 * EPS * largest) ** 2
    for captured in (W.T @ U, W @ V):
        assert sign * (float(captured.square().sum()) - optimum) <= allowed
    assert float((S.square().sum() - optimum).abs()) <= allowed
    identity = torch.eye(r, dtype=torch.float64)
    assert float(torch.linalg.matrix_norm(U.T @ U - identity)) <= 1e-6
    assert float(torch.linalg.matrix_norm(V.T @ V - identity)) <= 1e-6
    residuals = [float(torch.linalg.vector_norm(x, dim=0).max()) for x in (W @ V - U * S, W.T @ U - V * S)]
    assert min(residuals) <= 1e-6 * largest
    assert max(residuals) <= 5e-3 * largest
    assert bool((S[:-1] >= S[1:]).all()) and bool((S >= 0).all())
    assert bool((U.gather(0, U.abs().argmax(0)[None]) > 0).all())
    # Where sigma is zero, U is in the left null space and V in the right one.
    null = exact <= 1e-12 * largest
    for image in (W.T @ U[:, null], W @ V[:, null]):
        assert float(image.abs().max() if image.numel() else 0) <= 1e-6 * largest


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", CLASSES)
def test_every_class(name, shape):
    W = CLASSES[name](shape).float()
    exact = torch.linalg.svdvals(W.double())
    r = 16
    for part, wanted, sign in ((bottom(W, r), exact[-r:], 1), (top(W, r), exact[:r], -1)):
        assert part.certificate is not None
        assert part.U.dtype == torch.float32 and part.U.shape == (shape[0], r) and part.Vh.shape == (r, shape[1])
        judge(W.double(), part, wanted, sign)


def test_the_classes_reach_every_algorithm():
    used = set()
    for name, make in CLASSES.items():
        for shape in SHAPES:
            W = make(shape).float()
            used |= {part.certificate.algorithm for part in (bottom(W, 16), top(W, 16))}
            assert name != "gaussian" or bottom(W, 16).certificate.refused == ()
    assert used >= {"lu", "cholesky-float32", "cholesky-float64", "krylov", "gram"}


@pytest.mark.parametrize("shape", [(300, 300), (500, 300), (300, 500), (24, 9)], ids=str)
def test_any_rank_any_indices_and_all(shape):
    W = gaussian(shape, seed=4).float()
    exact, k = torch.linalg.svdvals(W.double()), min(shape)
    for r in sorted({1, 2, k // 7, k // 2, k - 1, k} - {0}):
        judge(W.double(), bottom(W, r), exact[-r:], 1)
        judge(W.double(), top(W, r), exact[:r], -1)
    indices = torch.tensor([0, 3, k // 2, k - 1])
    judge(W.double(), take(W, indices), exact[indices], 1)
    whole = full(W)
    assert torch.allclose(whole.S.double(), exact, atol=1e-6 * float(exact[0]), rtol=0)
    assert torch.allclose(whole.U * whole.S @ whole.Vh, W, atol=5e-6 * float(exact[0]), rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(300, 300), (500, 300)], ids=str)
def test_every_dtype(dtype, shape):
    W = gaussian(shape, seed=5).to(dtype)
    exact = torch.linalg.svdvals(W.double())
    part = bottom(W, 12)
    assert part.S.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    judge(W.double(), part, exact[-12:], 1)
    # Values are float64's own before the cast.
    assert torch.allclose(part.S.double(), exact[-12:], rtol=1e-4, atol=0)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 300)], ids=str)
def test_rows_and_columns(shape):
    W = gaussian(shape, seed=6).float()
    exact = torch.linalg.svdvals(W.double())
    judge(W.double(), bottom(W, 1), exact[-1:], 1)
    judge(W.double(), top(W, 1), exact[:1], -1)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 90), columns=st.integers(1, 90), decades=st.floats(0, 8), zeros=st.integers(0, 30),
    scale=st.sampled_from([1.0, 1e-15, 1e15]), seed=st.integers(0, 10**6), data=st.data(),
)  # fmt: skip
def test_any_spectrum(rows, columns, decades, zeros, scale, seed, data):
    k = min(rows, columns)
    S = scale * torch.logspace(0, -decades, max(1, k - zeros), dtype=torch.float64)
    W = with_spectrum((rows, columns), S, seed).float()
    r = data.draw(st.integers(1, k))
    exact = torch.linalg.svdvals(W.double())
    judge(W.double(), bottom(W, r), exact[-r:], 1)
    judge(W.double(), top(W, r), exact[:r], -1)


@settings(max_examples=15, deadline=None)
@given(
    rows=st.integers(260, 420), columns=st.integers(260, 420), tail=st.floats(-1.5, 0), r=st.integers(1, 40),
    seed=st.integers(0, 10**6),
)  # fmt: skip
def test_any_spectrum_by_iteration(rows, columns, tail, r, seed):
    W = with_spectrum((rows, columns), torch.arange(1, min(rows, columns) + 1).double() ** tail, seed).float()
    exact = torch.linalg.svdvals(W.double())
    judge(W.double(), bottom(W, r), exact[-r:], 1)
    judge(W.double(), top(W, r), exact[:r], -1)


@pytest.mark.parametrize("shape", [(400, 400), (700, 400)], ids=str)
def test_threads_and_repetition_change_nothing_beyond_rounding(shape):
    W = with_spectrum(shape, torch.linspace(1, 0.01, 400, dtype=torch.float64)).float()
    threads, found = torch.get_num_threads(), []
    for count in (1, 1, 2):
        torch.set_num_threads(count)
        try:
            found.append(bottom(W, 16))
        finally:
            torch.set_num_threads(threads)
    first, again, other = found
    assert all(torch.equal(getattr(first, x), getattr(again, x)) for x in ("U", "S", "Vh"))
    for x in ("U", "S", "Vh"):
        assert torch.allclose(getattr(first, x), getattr(other, x), atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(300, 300), (40, 40)], ids=str)
def test_the_whole_range_of_a_dtype(dtype, shape):
    W = gaussian(shape, seed=7).clamp(-1, 1).to(dtype)
    expected, k = bottom(W, 3), min(shape)
    for factor in (torch.finfo(dtype).max, 2 * torch.finfo(dtype).smallest_normal):
        found = bottom(W * factor, 3)
        # The smaller of the two has lost digits to the range, as any weight there has.
        assert torch.allclose(found.S.double() / factor, expected.S.double(), rtol=1e-5)
        assert torch.allclose(found.U.abs(), expected.U.abs(), atol=1e-3)
    assert float(torch.linalg.svdvals(W)[0]) > 1
    with pytest.raises(MiloraError, match="singular values beyond"):
        top(W * torch.finfo(dtype).max, k)


def test_the_start_is_no_stranger_to_the_weight():
    """A weight drawn with a user's small seed shares no numbers with the random start of the engine."""
    for seed in range(3):
        W = torch.randn(300, 300, generator=torch.Generator().manual_seed(seed))
        assert bottom(W, 16).certificate.refused == ()

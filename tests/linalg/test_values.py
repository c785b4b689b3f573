"""Singular values without vectors: against LAPACK in float64, on matrices of every kind, by both ways of computing."""

import numpy as np
import pytest
import torch

from milora.errors import MiloraError
from milora.linalg.values import singular_values, values


def with_spectrum(S: torch.Tensor, m: int, n: int, dtype=torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    U = torch.linalg.qr(torch.randn(m, len(S), generator=generator, dtype=torch.float64)).Q
    V = torch.linalg.qr(torch.randn(n, len(S), generator=generator, dtype=torch.float64)).Q
    return ((U * S) @ V.T).to(dtype)


def random(m: int, n: int) -> torch.Tensor:
    return torch.randn(m, n, generator=torch.Generator().manual_seed(3))


MATRICES = {
    "wide": random(20, 48),
    "tall": random(48, 20),
    "square": random(32, 32),
    "bfloat16": random(20, 48).bfloat16(),
    "one_row": random(1, 9),
    "one": torch.tensor([[-3.0]]),
    "zero": torch.zeros(6, 4),
    "rank_deficient": random(30, 5) @ random(5, 18),
    "condition_1e3": with_spectrum(torch.logspace(0, -3, 16, dtype=torch.float64), 40, 16),
    "condition_1e6": with_spectrum(torch.logspace(0, -6, 16, dtype=torch.float64), 40, 16),
    "condition_1e9": with_spectrum(torch.logspace(0, -9, 16, dtype=torch.float64), 40, 16),
    "tiny": random(24, 8) * 1e-30,
    "huge": random(24, 8).double() * 1e200,
    "huge_float32": random(24, 8).clamp(-1, 1) * torch.finfo(torch.float32).max,
    "subnormal": random(24, 8).double() * 1e-310,
}


@pytest.mark.parametrize("name", MATRICES)
def test_equals_float64_lapack(name: str):
    W = MATRICES[name]
    found = singular_values(W)
    exact = torch.from_numpy(np.linalg.svd(W.double().numpy(), compute_uv=False))
    assert found.dtype == torch.float64 and found.shape == exact.shape
    assert bool((found[:-1] >= found[1:]).all()) and bool((found >= 0).all())
    allowed = torch.maximum(1e-6 * exact, 1e-12 * exact[0])
    assert bool(((found - exact).abs() <= allowed).all()), name


def test_a_gram_matrix_serves_only_where_the_smallest_value_is_exact():
    assert values(MATRICES["condition_1e3"]).certificate.algorithm == "values_gram"
    assert values(MATRICES["condition_1e6"]).certificate.algorithm == "values_lapack"
    assert values(MATRICES["condition_1e9"]).certificate.algorithm == "values_lapack"
    assert values(MATRICES["rank_deficient"]).certificate.algorithm == "values_lapack"
    assert values(MATRICES["square"]).certificate.algorithm == "values_lapack"


def test_values_are_an_svd_without_vectors():
    for W, dtype in ((MATRICES["bfloat16"], torch.float32), (MATRICES["huge"], torch.float64)):
        found = values(W)
        m, n = W.shape
        assert (found.U.shape, found.S.dtype, found.Vh.shape) == ((m, 0), dtype, (0, n))
        assert torch.allclose(found.S.double(), singular_values(W), rtol=1e-7)


def test_values_beyond_a_dtype_are_refused():
    W = MATRICES["huge_float32"]
    assert float(singular_values(W)[0]) > torch.finfo(torch.float32).max
    with pytest.raises(MiloraError, match="singular values beyond"):
        values(W)
    largest = torch.eye(4, 3, dtype=torch.float64) * torch.finfo(torch.float64).max
    assert torch.equal(singular_values(largest), largest.diagonal())


def test_refuses_what_is_not_finite():
    with pytest.raises(MiloraError, match="NaN or Inf"):
        singular_values(torch.tensor([[1.0, float("nan")]]))

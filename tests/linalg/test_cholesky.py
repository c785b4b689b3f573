"""The shift: as near below the smallest eigenvalue as the factorisation lets it come."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from milora.linalg import cholesky


@pytest.mark.parametrize("smallest", [4.0, 3.5])
def test_a_shift_is_found_below_a_ritz_value_whose_residual_is_exactly_zero(smallest):
    """The Ritz value is 4; the smallest eigenvalue is it, or lies below it unseen."""
    M = torch.tensor([2.0, 2.0, smallest**0.5]).diag()
    V = torch.eye(3, dtype=torch.float64)[:, :1]
    space: Any = SimpleNamespace(
        b=1, Qt=M, ritz=lambda q: SimpleNamespace(theta=torch.tensor([4.0], dtype=torch.float64), V=V)
    )
    G = M.square()
    lower, start, shift = cholesky._shifted(G, M, space, 0.0)
    assert 0 < shift < smallest and start.shape == (3, 1)
    assert torch.allclose(lower @ lower.T, G - shift * torch.eye(3), atol=1e-5)

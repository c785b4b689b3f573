"""Triangular factors of a matrix, and solves with them.

    cholesky(G) = L,  G = L L^T           LU(W):  P W^T = L U

On a CPU scipy's LAPACK factorises (a third to two thirds of the time that torch's takes) and torch's BLAS solves,
without the copies of the factor that torch's own LU makes.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from milora.linalg.arithmetic import torch_threads


def cholesky(G: Tensor) -> Tensor | None:  # (n, n) -> (n, n)
    """The lower factor, or None where G is not positive definite.

    Only G's lower triangle is read, and only the factor's says anything: the rest may hold anything.
    """
    if G.device.type != "cpu":
        lower, info = torch.linalg.cholesky_ex(G)
        return lower if int(info) == 0 else None
    columns = G.T.numpy()  # the lower triangle of a row-major matrix is the upper one of a column-major one
    (potrf,) = scipy.linalg.get_lapack_funcs(("potrf",), (columns,))
    with torch_threads:
        upper, info = potrf(columns, lower=False, clean=False)
    return torch.from_numpy(upper).T if info == 0 else None


def solve(lower: Tensor, X: Tensor) -> Tensor:  # (n, n), (n, b)
    """(L L^T)^-1 X."""
    half = torch.linalg.solve_triangular(lower, X, upper=False)
    return torch.linalg.solve_triangular(lower.T, half, upper=True)


class LU:
    """Solves with a square matrix on a CPU; where a pivot is zero they give what is not finite.

    Args:
        W: (n, n) float32 or float64.
    """

    def __init__(self, W: Tensor) -> None:
        columns = W.T.numpy()
        getrf, laswp = scipy.linalg.get_lapack_funcs(("getrf", "laswp"), (columns,))
        with torch_threads:
            factor, pivots, _ = getrf(columns)
            order = laswp(np.arange(len(columns), dtype=columns.dtype)[:, None], pivots)
        self.factor = torch.from_numpy(factor)  # (n, n) L below the diagonal, U on and above it
        self.order = torch.from_numpy(order[:, 0]).long()  # (n,) P X = X[order]
        self.back = self.order.argsort()

    def solve_transposed(self, X: Tensor) -> Tensor:  # (n, b) -> (n, b)
        """W^-T X = U^-1 L^-1 P X."""
        half = torch.linalg.solve_triangular(self.factor, X[self.order], upper=False, unitriangular=True)
        return torch.linalg.solve_triangular(self.factor, half, upper=True)

    def solve(self, X: Tensor) -> Tensor:  # (n, b) -> (n, b)
        """W^-1 X = P^T L^-T U^-T X."""
        half = torch.linalg.solve_triangular(self.factor.T, X, upper=False)
        return torch.linalg.solve_triangular(self.factor.T, half, upper=True, unitriangular=True)[self.back]

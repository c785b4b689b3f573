"""A decomposition by what is needed of it: `bottom(W, r)`, `top(W, r)`, `take(W, indices)`, `full(W)`."""

from __future__ import annotations

import torch
from torch import Tensor

from milora.linalg.certificate import Certificate
from milora.linalg.svd import SVD, check_rank, fix_signs, middle_indices, prepare

# Rises whenever the numbers that come out of this room may change; it is part of the store's keys.
VERSION = 1


def bottom(W: Tensor, r: int, *, strict: bool = False) -> SVD:  # W (m, n)
    """The r minor triplets."""
    check_rank(r, min(W.shape))
    return full(W).bottom(r)


def top(W: Tensor, r: int, *, strict: bool = False) -> SVD:  # W (m, n)
    """The r principal triplets."""
    check_rank(r, min(W.shape))
    return full(W).top(r)


def take(W: Tensor, indices: Tensor) -> SVD:  # W (m, n), indices (r,) rising
    """The triplets at `indices`, 0 being the largest singular value."""
    return full(W).take(indices)


def full(W: Tensor) -> SVD:  # W (m, n)
    """All k = min(m, n) triplets, by LAPACK, at least in float32."""
    W = prepare(W)
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    U, Vh = fix_signs(U, Vh)
    # The backward error of a Householder SVD is a small multiple of eps * sigma_1 that grows like sqrt(dimension).
    resolution = float(S[0]) * torch.finfo(W.dtype).eps * max(W.shape) ** 0.5
    return SVD(U, S, Vh, resolution, Certificate("lapack", 0.0, 0.0, 0.0, 0.0))


class Decomposition:
    """A weight's decomposition, computed part by part as it is asked for, and kept nowhere.

    Args:
        W: (m, n), any floating dtype; float16 and bfloat16 are up-cast to float32, float64 stays.

    Raises:
        MiloraError: from each part: W is no matrix, is empty, holds NaN or Inf; a rank that it does not have.
    """

    def __init__(self, W: Tensor) -> None:  # (m, n)
        self.W = W

    def __len__(self) -> int:
        return min(self.W.shape)

    def top(self, r: int) -> SVD:
        """The r principal triplets."""
        return top(self.W, r)

    def bottom(self, r: int) -> SVD:
        """The r minor triplets."""
        return bottom(self.W, r)

    def middle(self, r: int) -> SVD:
        """The r central triplets, from index (k - r) // 2 on."""
        check_rank(r, len(self))
        return self.take(middle_indices(r, len(self)))

    def take(self, indices: Tensor) -> SVD:  # indices (r,), rising
        """The triplets at `indices`, 0 being the largest singular value."""
        return take(self.W, indices)

    def full(self) -> SVD:
        """All triplets."""
        return full(self.W)

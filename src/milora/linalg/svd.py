"""The singular value decomposition of one weight, W = U S V^T, with signs fixed.

    W (m, n),  k = min(m, n):   U (m, k),  S (k,) falling,  V^T = Vh (k, n)

Singular vectors are unique only up to a common sign of u_i and v_i. Here the entry of u_i of largest magnitude is
positive (the first such entry on a tie), so that one weight gives one set of factors whatever routine computed it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from milora.errors import MiloraError


@dataclass(frozen=True)
class SVD:
    """Singular triplets of a matrix, S falling.

    Attributes:
        U: left singular vectors, one a column.
        S: singular values, in falling order.
        Vh: right singular vectors, one a row.
        resolution: the absolute size below which a singular value is rounding noise of the computation.
    """

    U: Tensor  # (m, k)
    S: Tensor  # (k,)
    Vh: Tensor  # (k, n)
    resolution: float = 0.0

    def __len__(self) -> int:
        return self.S.shape[0]

    def top(self, r: int) -> SVD:
        """The r principal triplets: U[:, :r], S[:r], Vh[:r]."""
        self._check_rank(r)
        return self.take(torch.arange(r))

    def bottom(self, r: int) -> SVD:
        """The r minor triplets: U[:, -r:], S[-r:], Vh[-r:]."""
        self._check_rank(r)
        return self.take(torch.arange(len(self) - r, len(self)))

    def middle(self, r: int) -> SVD:
        """The r central triplets, from index (k - r) // 2 on."""
        self._check_rank(r)
        start = (len(self) - r) // 2
        return self.take(torch.arange(start, start + r))

    def take(self, indices: Tensor) -> SVD:  # indices (r,), rising
        """The triplets at `indices`, 0 being the largest singular value."""
        i = indices.to(self.S.device)
        return SVD(self.U[:, i], self.S[i], self.Vh[i], self.resolution)

    def _check_rank(self, r: int) -> None:
        if not 1 <= r <= len(self):
            raise MiloraError(f"rank: got {r}, allowed 1 to {len(self)} (the smaller side of the matrix)")


def svd(W: Tensor) -> SVD:  # W (m, n)
    """Decompose one weight in full, at least in float32.

    Args:
        W: (m, n), any floating dtype; float16 and bfloat16 are up-cast to float32, float64 stays.

    Returns:
        The economy SVD, k = min(m, n), with signs fixed, in the dtype of the computation and on W's device.

    Raises:
        MiloraError: W is not a matrix, is empty, or holds NaN or Inf.
    """
    if W.ndim != 2 or 0 in W.shape:
        raise MiloraError(f"weight: got shape {tuple(W.shape)}, allowed a matrix with at least one entry")
    W = W.detach()
    W = W if W.dtype == torch.float64 else W.to(torch.float32)
    if not bool(torch.isfinite(W).all()):
        raise MiloraError("weight: got NaN or Inf among its entries, allowed finite numbers")
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    U, Vh = fix_signs(U, Vh)
    # The backward error of a Householder SVD is a small multiple of eps * sigma_1 that grows like sqrt(dimension).
    resolution = float(S[0]) * torch.finfo(W.dtype).eps * max(W.shape) ** 0.5
    return SVD(U, S, Vh, resolution)


def fix_signs(U: Tensor, Vh: Tensor) -> tuple[Tensor, Tensor]:  # U (m, k), Vh (k, n)
    """Flip u_i and v_i together so that the entry of u_i of largest magnitude is positive."""
    largest = U.abs().argmax(dim=0)  # (k,)
    signs = torch.where(U.gather(0, largest[None, :])[0] < 0, -1.0, 1.0).to(U.dtype)  # (k,)
    return U * signs, Vh * signs[:, None]

"""The singular value decomposition of a product of two factors; the product is never made.

P = Q_P R_P,  Q^T = Q_Q R_Q,  R_P R_Q^T = U S V^T     =>     P Q = (Q_P U) S (Q_Q V)^T
"""

from __future__ import annotations

import torch
from torch import Tensor


def factored_svd(
    P: Tensor,  # (m, q)
    Q: Tensor,  # (q, n)
) -> tuple[Tensor, Tensor, Tensor]:  # (m, k), (k,), (k, n)
    """U, S, V^T of P Q in float64, k = min(m, q, n), S falling."""
    left, R_left = torch.linalg.qr(P.double())  # (m, k'), (k', q)
    right, R_right = torch.linalg.qr(Q.double().T)  # (n, k''), (k'', q)
    U, S, Vh = torch.linalg.svd(R_left @ R_right.T, full_matrices=False)
    return left @ U, S, Vh @ right.T

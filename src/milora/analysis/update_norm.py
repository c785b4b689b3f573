"""How large a weight's change is.

||dW||_F,    relative = ||dW||_F / ||W||_F
"""

from __future__ import annotations

import torch
from torch import Tensor


def frobenius(X: Tensor) -> float:  # any shape
    """||X||_F, summed in float64."""
    return float(torch.linalg.vector_norm(X, dtype=torch.float64))


def norms(W: Tensor, S: Tensor) -> dict[str, float | None]:  # (out, in), (k,)
    """||W||_F, ||dW||_F and their ratio, which a weight of zero does not have.

    Args:
        W: the original weight.
        S: all singular values of dW that are not zero; ||dW||_F^2 is the sum of their squares.
    """
    whole, change = frobenius(W), frobenius(S)
    return {"norm_W": whole, "norm_dW": change, "relative": change / whole if whole else None}

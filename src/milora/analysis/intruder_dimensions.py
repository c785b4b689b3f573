"""Intruder dimensions: strong directions of the tuned weight that are none of the original weight's.

Shuttleworth et al. (arXiv:2410.21228): with u_j the left singular vectors of W and u'_i those of W' = W + dW, u'_i is
an intruder if it is among the k principal ones and

    max_j |<u'_i, u_j>| < epsilon          over all of W's singular vectors

k = 10 and epsilon = 0.5 here. The cosines with some of the u_j mostly decide: one of them reaches epsilon, or what is
left of u'_i, 1 - sum_j <u'_i, u_j>^2, is less than epsilon^2, so that no other one can. Where neither is so, W is
decomposed as a whole. Singular vectors of (nearly) equal singular values are free to turn among themselves; where W
has such, a small change may count as an intruder by this definition.
"""

from __future__ import annotations

import torch
from torch import Tensor

from milora.adapters.delta import Delta
from milora.linalg import full, top

K = 10
EPSILON = 0.5
_ROUNDING = 1e-4  # of a sum of squared cosines in float32


def intruder_dimensions(
    W: Tensor,  # (m, n)
    dW: Tensor | Delta,  # (m, n)
    *,
    k: int = K,
    epsilon: float = EPSILON,
    known: Tensor | None = None,  # (m, p)
) -> int:
    """How many of the k principal left singular vectors of W + dW are none of W's.

    Args:
        W: the original weight.
        dW: its change.
        k: how many of W' are looked at.
        epsilon: the cosine from which on a vector of W' counts as one of W's.
        known: left singular vectors of W that are at hand, so that W need not be decomposed where these decide.

    Raises:
        MiloraError: NaN or Inf in one of them.
    """
    tuned = W + (dW.dense().to(W.dtype) if isinstance(dW, Delta) else dW.to(W.dtype))
    U = top(tuned, min(k, *W.shape)).U  # (m, k)
    del tuned
    if known is not None:
        squares = (known.T @ U).square()  # (p, k)
        met = squares.amax(dim=0).sqrt() >= epsilon  # (k,)
        rest = 1 - squares.sum(dim=0, dtype=torch.float64)
        if bool((met | (rest + _ROUNDING < epsilon**2)).all()):
            return int((~met).sum())
    return int(((full(W).U.T @ U).abs().amax(dim=0) < epsilon).sum())

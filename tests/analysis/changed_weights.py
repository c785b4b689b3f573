"""Small weights and changes, and every measurement of them by numpy in float64, from the papers' formulas."""

import math

import numpy as np
import torch
from torch import Tensor

from milora.adapters.delta import Delta


def random(m: int, n: int, seed: int = 0) -> Tensor:
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed))


def factors(m: int, n: int, ranks: tuple[int, ...], seed: int = 0, scale: float = 0.7) -> Delta:
    draw = torch.Generator().manual_seed(seed)
    terms = tuple((torch.randn(m, r, generator=draw), torch.randn(r, n, generator=draw)) for r in ranks)
    return Delta(terms, scale)


def by_numpy(W: Tensor, dW: Tensor, r: int, random_of_W: list[int]) -> dict:
    """The record of one module; of the random directions only phi, whose indices are given."""
    W, dW = W.double().numpy(), dW.double().numpy()
    U, S, Vh = np.linalg.svd(W, full_matrices=False)
    dU, dS, dVh = np.linalg.svd(dW, full_matrices=False)
    q = min(r, int((dS > np.finfo(np.float32).eps * math.sqrt(max(W.shape)) * dS[0]).sum()))
    dU, dV = dU[:, :q], dVh[:q].T
    parts = {"top": slice(0, r), "bottom": slice(len(S) - r, len(S)), "random": random_of_W}
    p = dS / dS.sum()
    p = p[p > 1e-12]
    of_W, of_dW = (np.linalg.norm(dU.T @ X @ dV) for X in (W, dW))
    tuned = np.linalg.svd(W + dW, full_matrices=False)[0][:, :10]
    return {
        "norm_W": np.linalg.norm(W),
        "norm_dW": np.linalg.norm(dW),
        "relative": np.linalg.norm(dW) / np.linalg.norm(W),
        "phi": {
            "left": {name: np.linalg.norm(dU.T @ U[:, at]) ** 2 / q for name, at in parts.items()},
            "right": {name: np.linalg.norm(dV.T @ Vh[at].T) ** 2 / q for name, at in parts.items()},
        },
        "dW": {"W": of_W, "dW": of_dW, "amplification": of_dW / of_W},
        "W": {"W": np.linalg.norm(S[:r]), "dW": np.linalg.norm(U[:, :r].T @ dW @ Vh[:r].T)},
        "spectrum": dS[: 2 * r],
        "effective_rank": math.exp(-(p * np.log(p)).sum()),
        "intruders": int((np.abs(U.T @ tuned).max(axis=0) < 0.5).sum()),
    }

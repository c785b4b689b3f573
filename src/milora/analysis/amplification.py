"""How much of a weight lies in the directions of its change, and by how much the change amplifies it.

MiLoRA (arXiv:2406.09044, section 5.3), after LoRA (arXiv:2106.09685, section 7.3), with r left and r right singular
vectors U (out, r) and V (in, r) of dW, of W, or of a random matrix:

    ||U^T W V||_F,    ||U^T dW V||_F,    amplification = ||U^T dW V||_F / ||U^T W V||_F   with U, V of dW

dW is against the original weight. Where it has a rank above r (PiSSA and MiLoRA: up to 2r), ||U^T dW V||_F < ||dW||_F.
"""

from __future__ import annotations

import torch
from torch import Tensor

from milora.adapters.delta import Delta
from milora.analysis.update_norm import frobenius
from milora.analysis.update_spectrum import Update
from milora.linalg import SVD


def projection(U: Tensor, V: Tensor, X: Tensor | Delta) -> float:  # (m, q), (n, q), (m, n)
    """||U^T X V||_F."""
    if isinstance(X, Delta):
        return frobenius((U.T @ X.P.to(U.dtype)) @ (X.Q.to(U.dtype) @ V))
    return frobenius(U.T @ X @ V)


def amplification(of_W: float | None, of_dW: float | None) -> float | None:
    """||U^T dW V|| / ||U^T W V||; None where one is absent or W has nothing there."""
    return of_dW / of_W if of_W and of_dW is not None else None


def projections(
    W: Tensor,  # (out, in)
    dW: Tensor | Delta,  # (out, in)
    update: Update,
    principal: SVD,
    generator: torch.Generator,
) -> dict[str, dict[str, float | None]]:
    """The norms by whose U and V they are taken with.

    Args:
        W: the original weight.
        dW: its change.
        update: the decomposition of dW.
        principal: the top r of W.
        generator: draws the random matrix.
    """
    q, r = update.directions, len(principal)
    of_W = projection(update.U, update.Vh.T, W) if q else None
    of_dW = projection(update.U, update.Vh.T, dW) if q else None
    left, right = (random_directions(side, r, generator).to(W) for side in W.shape)
    return {
        "dW": {"W": of_W, "dW": of_dW, "amplification": amplification(of_W, of_dW)},
        "W": {"W": projection(principal.U, principal.Vh.T, W), "dW": projection(principal.U, principal.Vh.T, dW)},
        "random": {"W": projection(left, right, W), "dW": projection(left, right, dW)},
    }


def random_directions(m: int, r: int, generator: torch.Generator) -> Tensor:  # (m, r), float64
    """Orthonormal columns that span what the singular vectors of a Gaussian matrix span."""
    return torch.linalg.qr(torch.randn(m, r, generator=generator, dtype=torch.float64))[0]

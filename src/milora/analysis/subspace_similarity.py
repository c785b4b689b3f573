"""Where in a weight its change lies: the overlap of their singular subspaces.

MiLoRA (arXiv:2406.09044, appendix A.1), after LoRA (arXiv:2106.09685, section 7.2), with r singular vectors in each of
A and B, one a column:

    phi(A, B) = ||A^T B||_F^2 / r,    0 (orthogonal) to 1 (the same space)

A holds the r principal vectors of dW, B the r principal, the r minor or r random ones of W; left and right. A change
of fewer than r directions is divided by their number. For a space that has nothing to do with W, phi is r / m on the
left and r / n on the right in expectation.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import torch
from torch import Tensor

from milora.analysis.update_spectrum import Update
from milora.linalg import SVD

AGAINST = ("top", "bottom", "random")


def similarity(A: Tensor, B: Tensor) -> float | None:  # (m, q), (m, r)
    """phi of two sets of orthonormal columns, divided by the smaller number of them; None for an empty set."""
    fewer = min(A.shape[1], B.shape[1])
    return float((A.T @ B).square().sum(dtype=torch.float64)) / fewer if fewer else None


def similarities(update: Update, parts: Mapping[str, SVD]) -> dict[str, dict[str, float | None]]:
    """phi of a change against parts of its weight's decomposition, by side and part.

    Args:
        update: the change.
        parts: triplets of W by name.
    """
    return {
        "left": {name: similarity(update.U, part.U) for name, part in parts.items()},
        "right": {name: similarity(update.Vh.T, part.Vh.T) for name, part in parts.items()},
    }


def random_indices(k: int, r: int, module: str, seed: int) -> Tensor:  # (r,) rising
    """r of k indices without replacement; the module's name and the seed alone decide which."""
    return torch.randperm(k, generator=generator(module, seed))[:r].sort().values


def generator(module: str, seed: int) -> torch.Generator:
    """A generator of a module's own, on the CPU, so that the order of the modules does not matter."""
    # Of a seed, torch's CPU generator takes the lowest 32 bits alone.
    return torch.Generator().manual_seed(zlib.crc32(f"{seed}/{module}".encode()))

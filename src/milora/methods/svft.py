"""SVFT: a sparse matrix between all singular vectors (Lingam et al., arXiv 2405.19597).

    h = U (S + M) V^T x,   M (k, k) sparse, trained at fixed positions
      = W x + U M V^T x

L0 = U, R0 = V^T, and M is our C, zero at the start. Positions, and how many numbers train:

    plain     the diagonal                                              k
    banded    |i - j| <= d                                              k (2d + 1) - d (d + 1)
    random    drawn uniformly, without repetition                       as many as the band of d, or `entries`
    top_k     where |u_i^T v_j| is largest; square weights only         as many as the band of d, or `entries`

The authors' code (VijayLingam95/SVFT, 8303115) starts M at N(0, 2/N) for N positions and trains a gate g beside it, M
sigmoid(g) with g = 0 at the start; `as_published` does so (N + 1 numbers; ||dW||_F is about 0.7). Not taken over:
positions drawn with repetition, top_k by U V instead of U^T V, and a base weight that is cut off where `svd_rank` is
below k. Here the rest of W stays.
"""

import torch
from torch import Tensor

from milora.errors import MiloraError
from milora.linalg import SVD, Triplets
from milora.methods.core import Banded, Core, Diagonal, Scattered, band_size
from milora.methods.factors import Choice, Factors, Method
from milora.methods.svf import width

PATTERNS = ("plain", "banded", "random", "top_k")


def factors(svd: Triplets, choice: Choice) -> Factors:
    """L0 = U  (out, q),  R0 = V^T  (q, in); all k triplets, or the `svd_rank` largest."""
    part = svd.full() if choice.svd_rank is None else svd.top(choice.svd_rank)
    pattern = core(len(part), choice)
    indices = _positions(part, choice, pattern.size) if isinstance(pattern, Scattered) else None
    C = None
    if choice.as_published:
        M = torch.randn(pattern.size, generator=choice.generator) * (2 / pattern.size) ** 0.5
        C = torch.cat([M, torch.zeros(1)])  # the last is the gate
    return Factors(part.U, part.Vh, C=C, indices=indices)


def core(q: int, choice: Choice) -> Core:
    """M (q, q).

    Raises:
        MiloraError: an unknown pattern; more positions than there are.
    """
    if choice.pattern not in PATTERNS:
        raise MiloraError(f"pattern: got {choice.pattern!r}, allowed {', '.join(PATTERNS)}")
    if choice.pattern == "plain":
        return Diagonal(q)
    if choice.entries is None and choice.d >= q:
        raise MiloraError(f"d: got {choice.d}, allowed 0 to {q - 1} (the singular triplets but one)")
    if choice.pattern == "banded":
        return Banded(q, choice.d)
    size = band_size(q, choice.d) if choice.entries is None else choice.entries
    if size > q * q:
        raise MiloraError(f"entries: got {size}, allowed 1 to {q * q}")
    return Scattered(q, size)


def _positions(part: SVD, choice: Choice, size: int) -> Tensor:  # (2, size), row by row
    q = len(part)
    if choice.pattern == "random":
        flat = torch.randperm(q * q, generator=choice.generator, device="cpu")[:size]
    else:
        if part.U.shape[0] != part.Vh.shape[1]:
            out, in_ = part.U.shape[0], part.Vh.shape[1]
            raise MiloraError(f"pattern: got 'top_k' for a {out} x {in_} weight, allowed only for square ones")
        alike = (part.U.T @ part.Vh.T).abs()  # (q, q), |u_i^T v_j|
        flat = alike.flatten().topk(size).indices.cpu()
    flat = flat.sort().values
    return torch.stack([flat // q, flat % q]).to(torch.int32)


def numbers(q: int, choice: Choice) -> int:
    """The positions, and the authors' gate."""
    return core(q, choice).size + choice.as_published


def values(C: Tensor, R0: Tensor, choice: Choice) -> Tensor:  # (size,) or (size + 1,) -> (size,)
    """M, or the authors' M sigmoid(g)."""
    return C[:-1] * torch.sigmoid(C[-1]) if choice.as_published else C


METHOD = Method(
    name="svft",
    title="SVFT",
    equation="W' = U (S + M) V^T = W + U M V^T,  M sparse, 0 at the start",
    paper="Lingam et al., arXiv 2405.19597",
    trains=frozenset({"C"}),
    factors=factors,
    ranked=False,
    width=width,
    core=core,
    numbers=numbers,
    values=values,
    own=frozenset({"pattern", "d", "entries", "svd_rank", "as_published"}),
)

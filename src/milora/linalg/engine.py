"""A decomposition by what is needed of it: `bottom(W, r)`, `top(W, r)`, `take(W, indices)`, `full(W)`.

Each asks the fastest algorithm that suits the matrix first. Its result is checked (`certificate.py`); a result that
fails is thrown away and the next safer algorithm computes it, down to LAPACK in float64. Nothing that failed a check is
given out, and the certificate names what was refused before.

    bottom, square            lu               cholesky-float64   gram   lapack-float64
    bottom, rectangular       cholesky-float32 cholesky-float64   gram   lapack-float64
    bottom, on a GPU                           cholesky-float64   gram   lapack-float64
    top, large                krylov-bfloat16  krylov             gram   lapack-float64
    top                                        krylov             gram   lapack-float64
    small, or r above n / 14                                      gram   lapack-float64
    indices                                                       gram   lapack-float64
    all                       lapack-float32                             lapack-float64

What the results keep to (sigma_1 the largest singular value, eps32 = 2^-23; the tests measure it):

- captured energy within 1e-4 of the optimum, or within r (4 eps32 sigma_1)^2 of it where that is more;
- ||U^T U - I||_F and ||V^T V - I||_F at most 1e-6 after the cast to float32 (8 eps32 sqrt(max(m, n)) for `full`);
- the smaller of the two residuals at most 1e-6 sigma_1, the larger at most 5e-3 sigma_1;
- U in the left null space where sigma is zero;
- the same weight gives the same factors, to the last bit on the same processor and number of threads: every start is
  seeded, signs are fixed. On another number of threads, another processor or device, products are summed in another
  order, so that vectors agree to 1e-4 where their singular values are apart by 5 %; within a cluster only their
  span does. Ranks that must hold the same numbers read them from one store.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import scipy.linalg
import torch
from torch import Tensor

from milora.errors import MiloraError
from milora.linalg import cholesky, golub_kahan, gram, lapack, lu
from milora.linalg.arithmetic import exact
from milora.linalg.certificate import Refused, certify, norm_estimate
from milora.linalg.krylov import Clustered, NotConverged
from milora.linalg.parts import Part, Unsafe
from milora.linalg.svd import SVD, cast_values, check_matrix, check_rank, fix_signs, middle_indices, prepare

# Rises whenever the numbers that come out of this room may change; it is part of the store's keys.
VERSION = 3
SEED = 20_240_613  # of the random starts: the day of the MiLoRA paper's first version
SMALL = 256  # a side up to this: eigenvectors of the Gram matrix cost less than an iteration
CROWDED = 14  # and so they do for a part of more than 1 / CROWDED of all triplets
ORDINARY = 12  # binary exponents up to which a weight is taken as it is
TOLERANCE = {"bottom": 1e-4, "top": 8e-5}  # of the space; the steps after it make it better by several times

# What torch's and scipy's LAPACK raise where they do not converge are two exceptions.
FAILURES = (
    Unsafe, NotConverged, Clustered, Refused, scipy.linalg.LinAlgError,
    torch.linalg.LinAlgError,  # pyright: ignore[reportPrivateImportUsage]
)  # fmt: skip

Algorithm = Callable[[], Part]


def bottom(W: Tensor, r: int, *, strict: bool = False) -> SVD:  # W (m, n)
    """The r minor triplets.

    Args:
        W: any floating dtype; float16 and bfloat16 are up-cast to float32, float64 stays.
        r: 1 to min(m, n).
        strict: prove by an inertia count that no smaller singular value was missed. The proof takes a Gram matrix and
            a Cholesky factorisation in float64, about as long as the decomposition itself.

    Returns:
        U (m, r), S (r,), Vh (r, n) in float32 (float64 for a float64 weight), on W's device, certified.

    Raises:
        MiloraError: W is no matrix, is empty or holds NaN or Inf; a rank it does not have.

    Examples:
        >>> W = torch.diag(torch.tensor([5.0, 3.0, 1.0]))
        >>> [round(s, 4) for s in bottom(W, 2).S.tolist()]
        [3.0, 1.0]
    """
    return _solve(W, "bottom", r, strict=strict)


def top(W: Tensor, r: int, *, strict: bool = False) -> SVD:  # W (m, n)
    """The r principal triplets; arguments, result and errors are those of `bottom`."""
    return _solve(W, "top", r, strict=strict)


def take(W: Tensor, indices: Tensor) -> SVD:  # W (m, n), indices (r,) rising
    """The triplets at `indices`, 0 being the largest singular value; result and errors are those of `bottom`."""
    check_matrix(W)
    k, indices = min(W.shape), indices.cpu()
    check_rank(len(indices), k)
    if int(indices.min()) < 0 or int(indices.max()) >= k or bool((indices.diff() <= 0).any()):
        raise MiloraError(f"indices: got {indices.tolist()}, allowed rising numbers from 0 to {k - 1}")
    return _solve(W, "take", len(indices), indices=indices)


def full(W: Tensor) -> SVD:  # W (m, n)
    """All k = min(m, n) triplets; result and errors are those of `bottom`."""
    return _solve(W, "full", min(W.shape) if W.ndim == 2 else 0)


def _solve(W: Tensor, kind: str, r: int, *, indices: Tensor | None = None, strict: bool = False) -> SVD:
    W, magnitude = prepare(W)
    check_rank(r, min(W.shape))
    # Entries near 1 neither overflow nor vanish when they are squared; a power of two changes no digit.
    exponent = math.frexp(magnitude)[1] - 1
    scale = 1.0 if abs(exponent) <= ORDINARY else 2.0**exponent
    A = W if W.shape[0] >= W.shape[1] else W.T
    A = A if scale == 1.0 else A / A.new_tensor(scale)  # a GPU divides by a number by multiplying with its inverse
    with exact(A):
        largest = norm_estimate(A) if kind in ("bottom", "take") else 0.0  # the others hold sigma_1 themselves
    refused: list[str] = []
    for name, algorithm in _algorithms(A, kind, r, indices):
        try:
            with exact(A):
                part = algorithm()
                found = certify(A, part, kind, largest, strict=strict, refused=tuple(refused))
        except FAILURES:
            refused.append(name)
            continue
        U, S, V = part.U.to(W.dtype), cast_values(part.S * scale, W.dtype), part.V.to(W.dtype)
        U, Vh = fix_signs(U, V.T) if W.shape[0] >= W.shape[1] else fix_signs(V, U.T)
        resolution = max(largest * scale, float(S[0])) * torch.finfo(W.dtype).eps * max(W.shape) ** 0.5
        return SVD(U, S, Vh, resolution, found)
    raise RuntimeError(f"no algorithm decomposes this {tuple(W.shape)} weight within its checks: {', '.join(refused)}")


def _algorithms(A: Tensor, kind: str, r: int, indices: Tensor | None) -> Iterator[tuple[str, Algorithm]]:
    """The algorithms for a part of A (m, n), m >= n, the fastest first."""
    n = A.shape[1]
    generator = torch.Generator().manual_seed(SEED)
    if kind == "full":
        yield "lapack-float64", partial(lapack.part, A, torch.arange(n, device="cpu"), torch.float64)
        return
    wanted = {"bottom": torch.arange(n - r, n, device="cpu"), "top": torch.arange(r, device="cpu"), "take": indices}[
        kind
    ]
    assert wanted is not None
    if kind != "take" and n > SMALL and r <= n // CROWDED:
        yield from _iterative(A, kind, r, generator)
    yield "gram", partial(gram.part, A, wanted, generator)
    yield "lapack-float64", partial(lapack.part, A, wanted, torch.float64)


def _iterative(A: Tensor, kind: str, r: int, generator: torch.Generator) -> Iterator[tuple[str, Algorithm]]:
    # Blocks of 3/8 r columns need the fewest columns in all.
    b = max(8, -(-r * 3 // 32) * 4)
    if kind == "top":
        if golub_kahan.shortens(A):
            yield "krylov-bfloat16", partial(golub_kahan.top, A, r, b, TOLERANCE[kind], generator, shortened=True)
        yield "krylov", partial(golub_kahan.top, A, r, b, TOLERANCE[kind], generator)
        return
    bottom_of = partial(cholesky.bottom, A, r, b, TOLERANCE[kind], generator)
    if not A.is_cuda and A.shape[0] == A.shape[1]:
        yield "lu", partial(lu.bottom, A, r, b, TOLERANCE[kind], generator)
    elif not A.is_cuda and A.dtype == torch.float32:
        yield "cholesky-float32", partial(bottom_of, precision=torch.float32)
    yield "cholesky-float64", partial(bottom_of, precision=torch.float64)


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

"""Products of a weight with few columns, and with itself, each by the library that is fastest at it.

    A X = (X^T A^T)^T      oneDNN for a large float32 weight whose rows lie together, else torch's BLAS
    A^T A                  its lower triangle only

For few columns BLAS libraries are up to 15 times slower at A X than at (X^T A^T)^T. On an x86 processor oneDNN takes
half as long as MKL, which leaves the widest instructions unused on other makers' processors; the sums are float32's
either way.
"""

from __future__ import annotations

import platform

import torch
from torch import Tensor
from torch.nn.functional import linear

# oneDNN compiles its code at the first product of each shape, which takes a millisecond or more.
_LARGE = 2**18
_PANEL = 2**23  # entries of a weight that are transposed at a time
_X86 = platform.machine().lower() in ("x86_64", "amd64") and torch.backends.mkldnn.is_available()


def times(A: Tensor, X: Tensor) -> Tensor:  # (m, n), (n, b) -> (m, b)
    """A X for few columns."""
    if _by_onednn(A):
        return _linear(X.T, A).T
    return few(A, X)


def few(A: Tensor, X: Tensor) -> Tensor:  # (m, n), (n, b) -> (m, b)
    """The same by torch's BLAS: for a matrix whose shape comes once (`_LARGE`), or where rounding matters."""
    return (X.T @ A.T).T


def gram(A: Tensor) -> Tensor:  # (m, n) -> (n, n)
    """A^T A, its lower triangle only, by blocks: half the work of the whole product. The rest may hold anything."""
    m, n = A.shape
    if A.device.type == "cpu" and A.dtype == torch.float32 and _X86 and n * m >= _LARGE:
        rows = max(256, _PANEL // n)
        G = _gram_of_columns(A[:rows].T)
        for i in range(rows, m, rows):
            G += _gram_of_columns(A[i : i + rows].T)
        return G
    block = min(192, max(64, n // 6))
    G = A.new_zeros(n, n)
    for j in range(0, n, block):
        G[j:, j : j + block] = A[:, j:].T @ A[:, j : j + block]
    return G


def _gram_of_columns(At: Tensor) -> Tensor:  # (n, m) -> (n, n)
    """At At^T, its lower triangle."""
    At, n = At.contiguous(), At.shape[0]
    block = max(96, -(-n // 6))
    G = At.new_zeros(n, n)
    for i in range(0, n, block):
        G[i : i + block, : i + block] = _linear(At[i : i + block], At[: i + block])
    return G


def _by_onednn(A: Tensor) -> bool:
    return A.device.type == "cpu" and A.dtype == torch.float32 and _X86 and A.numel() >= _LARGE and A.is_contiguous()


def _linear(X: Tensor, A: Tensor) -> Tensor:  # (b, n), (m, n) -> (b, m)
    """X A^T."""
    return linear(X.contiguous().to_mkldnn(), A).to_dense()

"""One weight named by its values: the same name in float32 and in bfloat16 where the values are the same.

XXH3 with 128 bits runs at the speed of memory and tells any two weights apart that were not made to deceive it; it is
no proof against somebody who forges a weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
import xxhash
from torch import Tensor

# 1 MB of float32: what is converted is still in the processor's cache when it is hashed.
_CHUNK = 1 << 18


@dataclass(frozen=True)
class Digest:
    """The names of one weight, 32 hex digits each; both cover its shape.

    Attributes:
        key: of its values, whatever dtype holds them: float16, bfloat16 and float32 weights of equal values share it.
        rounded: of its values rounded to bfloat16; a checkpoint loaded in float32 and in bfloat16 shares it.
    """

    key: str
    rounded: str


@torch.no_grad()
def weight_digest(W: Tensor) -> Digest:  # (m, n), or any other shape
    """Name a weight in one pass over it, without a copy of the whole.

    Args:
        W: any shape, dtype, strides and device with values.
    """
    head = str(tuple(W.shape)).encode()
    rounded, exact = xxhash.xxh3_128(head), None
    for done, chunk in enumerate(_chunks(W)):
        short = chunk.to(torch.bfloat16)
        rounded.update(_bytes(short))
        if exact is None and chunk.dtype != torch.bfloat16 and not torch.equal(short.to(chunk.dtype), chunk):
            exact = xxhash.xxh3_128(head + str(chunk.dtype).encode())
            for earlier in islice(_chunks(W), done):
                exact.update(_bytes(earlier))
        if exact is not None:
            exact.update(_bytes(chunk))
    return Digest((exact or rounded).hexdigest(), rounded.hexdigest())


def _chunks(W: Tensor) -> Iterator[Tensor]:  # each (c,), on the CPU, in bfloat16, float32 or float64
    """The values in row-major order."""
    W = W.detach()
    if W.is_contiguous():
        pieces = W.reshape(-1).split(_CHUNK)
    else:
        pieces = W.split(max(1, _CHUNK * W.shape[0] // max(1, W.numel())))
    for piece in pieces:
        piece = piece.cpu().contiguous().reshape(-1)
        yield piece if piece.dtype in (torch.bfloat16, torch.float64) else piece.to(torch.float32)


def _bytes(values: Tensor) -> memoryview:  # (c,)
    return values.view(torch.uint8).numpy().data

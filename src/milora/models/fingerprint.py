"""Name weights by their content, whatever precision they were loaded in.

A checkpoint loaded in float32 today and in bfloat16 tomorrow is the same base. So weights are rounded to bfloat16
before they are hashed: float32 weights round to the bfloat16 weights that loading in bfloat16 gives, and bfloat16
weights widened to float32 round back to themselves. float16 and quantised bases round otherwise and are told apart by
their `precision`; fingerprints are comparable only between equal precisions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from milora.models.digest import Digest, weight_digest
from milora.models.quantised import dense_parameters


def fingerprint(named_weights: Iterable[tuple[str, Tensor | Digest]]) -> str:
    """SHA-256 (64 hex digits) over names and the digests of the bfloat16-rounded values, in the order given.

    Args:
        named_weights: names with their weights, or with the digests of weights that are already named.
    """
    digest = hashlib.sha256()
    for name, weight in named_weights:
        named = weight if isinstance(weight, Digest) else weight_digest(weight)
        digest.update(f"{name}\0{named.rounded}\0".encode())
    return digest.hexdigest()


def exact_fingerprint(digests: Mapping[str, Digest]) -> str:
    """SHA-256 (64 hex digits) over names and the digests of the values as they are, in sorted order."""
    digest = hashlib.sha256()
    for name, named in sorted(digests.items()):
        digest.update(f"{name}\0{named.key}\0".encode())
    return digest.hexdigest()


def model_fingerprint(model: nn.Module) -> str:
    """The fingerprint of all parameters of a model, by name in sorted order (tied parameters once)."""
    return fingerprint(sorted((name, weight_digest(W)) for name, W in dense_parameters(model)))


def precision(dtypes: Iterable[torch.dtype], quantised: str | None = None) -> str:
    """The class within which fingerprints compare: "bfloat16" (float32 too), "float16", or the quantisation."""
    if quantised:
        return quantised
    return "float16" if torch.float16 in set(dtypes) else "bfloat16"

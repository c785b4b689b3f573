"""What a fill is asked for: which parts, how much they take, and whether all of it can be done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from milora.decompositions.part import Part
from milora.decompositions.store import Store, default_store
from milora.errors import MiloraError
from milora.models.weights import LinearWeight


def parts_named(part: str, r: int) -> tuple[Part, ...]:
    """The parts that `--part` and `--rank` name.

    Raises:
        MiloraError: another name, or a rank below 1.
    """
    choices = {
        "bottom": (Part.bottom(r),),
        "top": (Part.top(r),),
        "all": (Part.bottom(r), Part.top(r)),
        "full": (Part.full(),),
    }
    if part not in choices:
        raise MiloraError(f"part: got {part!r}, allowed {', '.join(choices)}")
    if r < 1:
        raise MiloraError(f"rank: got {r}, allowed 1 or more")
    return choices[part]


def planned(weights: Sequence[LinearWeight], parts: Sequence[Part]) -> list[dict[str, Any]]:
    """Each matrix with its shape, its dtype and what its parts take in the store.

    Raises:
        MiloraError: the rank is over the smaller side of some; the first is named, and how many there are.
    """
    for part in parts:
        if part.r is not None:
            check_ranks(weights, part.r)
    return [
        {
            "name": w.name,
            "out": w.shape[0],
            "in": w.shape[1],
            "dtype": str(w.torch_dtype).removeprefix("torch."),
            "store_bytes": sum(part_bytes(part, w) for part in parts),
        }
        for w in weights
    ]


def part_bytes(part: Part, weight: LinearWeight) -> int:
    """Bytes of a part's U, S and Vh."""
    m, n = weight.shape
    vectors, values = part.lengths(min(m, n))
    return (vectors * (m + n) + values) * (8 if weight.stored.dtype == "F64" else 4)


def check_ranks(weights: Sequence[LinearWeight], r: int) -> None:
    """Check that every weight has r singular triplets.

    Raises:
        MiloraError: some have not; it names the first, and says how many.
    """
    short = [w for w in weights if r > min(w.shape)]
    if short:
        (m, n), smallest = short[0].shape, min(min(w.shape) for w in weights)
        raise MiloraError(
            f"rank: got {r}, over the smaller side of {len(short)} of {len(weights)} matrices, the first"
            f" {short[0].name} ({m} x {n}); allowed 1 to {smallest}"
        )


def needed_store() -> Store:
    """The store of this process.

    Raises:
        MiloraError: it is switched off.
    """
    store = default_store()
    if store is None:
        raise MiloraError("store: it is switched off, allowed here only on; leave out --no-store, unset MILORA_STORE")
    return store

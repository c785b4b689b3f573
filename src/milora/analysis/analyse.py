"""All measurements of a model's changed weights, one matrix after the other: the record `analysis.json`.

Each W and each dW is decomposed once for all of them. The top, bottom and random r of W come from the store, where
training and other runs on the same base find them too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import replace
from statistics import fmean
from typing import Any

from torch import Tensor

from milora.adapters.delta import Delta
from milora.analysis.amplification import projections
from milora.analysis.intruder_dimensions import EPSILON, K, intruder_dimensions
from milora.analysis.spectrum import layer_of, module_types
from milora.analysis.subspace_similarity import AGAINST, generator, random_indices, similarities
from milora.analysis.update_norm import norms
from milora.analysis.update_spectrum import decompose, effective_rank
from milora.decompositions import Store, default_store
from milora.decompositions.store import StoredDecomposition
from milora.errors import MiloraError
from milora.linalg import SVD, Decomposition
from milora.linalg.arithmetic import exact

DEFAULT_R = 32


def analyse(
    changes: Iterable[tuple[str, Tensor, Tensor | Delta]],
    r: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """Measure the changes of a model's weights.

    Args:
        changes: (module, W, dW) one at a time, as `milora.adapters.weight_changes`, `model_changes` and
            `milora.models.changes.checkpoint_changes` give them; W is the original weight (out, in), dW a matrix or
            its factors.
        r: of all subspaces, at most the smaller side of a matrix; by default the adapter's own, else 32.
        seed: of the random directions.
        progress: called with (matrices done, all of them, 0 where that is not known).
        device: where to compute; by default where W is.

    Returns:
        The record: `r`, `seed`, `against`, `intruder_dimensions` (their k and epsilon), `modules` and `summary`.
        What a matrix does not have is None: a change of zero has no directions.

    Raises:
        MiloraError: r below 1, NaN or Inf in a weight or a change, shapes that differ, no module at all.
    """
    rank: int = (getattr(changes, "r", None) or DEFAULT_R) if r is None else r
    if rank < 1:
        raise MiloraError(f"r: got {rank}, allowed 1 or more")
    total = len(changes) if isinstance(changes, Sized) else 0
    store = default_store()
    modules: list[dict[str, Any]] = []
    for change in changes:
        modules.append(_measured(*change, rank, seed, store, device))
        # While the next one is read, nothing of this one may be held.
        del change
        if progress is not None:
            progress(len(modules), total)
    if not modules:
        raise MiloraError("analyse: got no changed weight, allowed one or more")
    types = module_types([record["module"] for record in modules])
    for record in modules:
        record["type"] = types[record["module"]]
    settings = {"r": rank, "seed": seed, "against": "base", "intruder_dimensions": {"k": K, "epsilon": EPSILON}}
    return {**settings, "modules": modules, "summary": summary(modules)}


def _measured(
    module: str,
    W: Tensor,  # (out, in)
    dW: Tensor | Delta,  # (out, in)
    r: int,
    seed: int,
    store: Store | None,
    device: str | None,
) -> dict[str, Any]:
    if W.ndim != 2 or tuple(W.shape) != tuple(dW.shape):
        raise MiloraError(f"{module}: W is {tuple(W.shape)}, its change {tuple(dW.shape)}, allowed two equal matrices")
    if device is not None:
        W, dW = W.to(device), _on(dW, device)
    try:
        with exact(W):
            return measure(module, W, dW, r, seed, store)
    except MiloraError as error:
        raise MiloraError(f"{module}: {error}") from error


def measure(
    module: str,
    W: Tensor,  # (out, in)
    dW: Tensor | Delta,  # (out, in)
    r: int,
    seed: int = 0,
    store: Store | None = None,
) -> dict[str, Any]:
    """All measurements of one module, without its type, which the other modules' names decide.

    Args:
        module: its name; it also seeds the random directions.
        W: the original weight, in float32 or float64.
        dW: its change.
        r: of the subspaces, at most the smaller side.
        seed: of the random directions.
        store: where the parts of W are kept; None computes them.
    """
    r = min(r, *W.shape)
    parts = Decomposition(W) if store is None else StoredDecomposition(W, store, module)
    of_W = {
        "top": _in_rows(parts.top(r)),
        "bottom": _in_rows(parts.bottom(r)),
        "random": _in_rows(parts.take(random_indices(len(parts), r, module, seed))),
    }
    update = decompose(dW, r, W.dtype)
    return {
        "module": module,
        "layer": layer_of(module),
        "type": None,
        "shape": list(W.shape),
        **norms(W, update.S),
        "directions": update.directions,
        "phi": similarities(update, of_W),
        "projection": projections(W, dW, update, of_W["top"], generator(module, seed)),
        "spectrum": update.S[: 2 * r].tolist(),
        "effective_rank": effective_rank(update.S),
        "intruders": intruder_dimensions(W, dW, known=of_W["top"].U),
    }


def _in_rows(part: SVD) -> SVD:
    # What was just computed lies in columns, what was read in rows, and products of them differ in the last bit.
    return replace(part, U=part.U.contiguous(), Vh=part.Vh.contiguous())


def summary(modules: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over all modules, over those of each type and over those of each layer; what is None does not count."""
    by_type: dict[str, list[Mapping[str, Any]]] = {}
    by_layer: dict[str, list[Mapping[str, Any]]] = {}
    for record in modules:
        by_type.setdefault(record["type"], []).append(record)
        if record["layer"] is not None:
            by_layer.setdefault(str(record["layer"]), []).append(record)
    return {
        **_means(modules),
        "by_type": {name: _means(records) for name, records in by_type.items()},
        "by_layer": {name: _means(by_layer[name]) for name in sorted(by_layer, key=int)},
    }


def _means(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "matrices": len(records),
        "norm_dW": _mean(record["norm_dW"] for record in records),
        "relative": _mean(record["relative"] for record in records),
        "amplification": _mean(record["projection"]["dW"]["amplification"] for record in records),
        "phi": {
            side: {name: _mean(record["phi"][side][name] for record in records) for name in AGAINST}
            for side in ("left", "right")
        },
        "intruders": _mean(record["intruders"] for record in records),
    }


def _mean(values: Iterable[float | None]) -> float | None:
    there = [value for value in values if value is not None and math.isfinite(value)]
    return fmean(there) if there else None


def _on(dW: Tensor | Delta, device: str) -> Tensor | Delta:
    if isinstance(dW, Delta):
        return Delta(tuple((P.to(device), Q.to(device)) for P, Q in dW.terms), dW.scale)
    return dW.to(device)

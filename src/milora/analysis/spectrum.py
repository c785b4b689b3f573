"""What the singular values of a model's linear weights look like, layer by layer and by module type.

With s_1 >= ... >= s_k of an m x n weight, k = min(m, n), and p_i = s_i / sum_j s_j:

    condition number   s_1 / s_k
    effective rank     exp(-sum_i p_i log p_i)            (Roy and Vetterli 2007, "The effective rank")
    stable rank        ||W||_F^2 / s_1^2 = sum_i s_i^2 / s_1^2
    energy             sum of s_i^2 over the bottom or the top r, as a share of the whole
    in the interval    share of the s_i with low <= s_i <= high
    deficiency         how many s_i <= eps sqrt(max(m, n)) s_1, eps of float32: zero to float32 arithmetic
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from milora.decompositions import Part, Store
from milora.decompositions.fill_plan import check_ranks
from milora.decompositions.workers import Show, fill
from milora.errors import MiloraError
from milora.linalg.values import singular_values
from milora.models.weights import LinearWeight

MEASURES = (
    "sigma_max", "sigma_median", "sigma_min", "condition", "effective_rank", "stable_rank", "energy_bottom",
    "energy_top", "in_interval", "rank_deficiency",
)  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """One weight's spectrum in numbers; None is what a zero matrix does not have.

    Attributes:
        name: of the module.
        module_type: its name without numbers and what stands before them, shortened to the last part where that is
            enough: "q_proj"; "attn.c_proj" beside "mlp.c_proj".
        layer: the first number in its name.
        shape: (out, in).
    """

    name: str
    module_type: str
    layer: int | None
    shape: tuple[int, int]
    sigma_max: float
    sigma_median: float
    sigma_min: float
    condition: float | None
    effective_rank: float
    stable_rank: float
    energy_bottom: float | None
    energy_top: float | None
    in_interval: float
    rank_deficiency: int


@dataclass(frozen=True)
class Spectrum:
    """The spectra of a model's weights.

    Attributes:
        layers: in the model's order.
        values: the singular values of each, in the same order.
        rank, interval: what the energies and the shares are of.
    """

    layers: list[Layer]
    values: list[Tensor]  # each (k,)
    rank: int
    interval: tuple[float, float]

    def by_type(self) -> dict[str, dict[str, Any]]:
        """For each module type: its weights, how many of them are deficient, each measure's median and extremes."""
        types: dict[str, list[Layer]] = {}
        for layer in self.layers:
            types.setdefault(layer.module_type, []).append(layer)
        return {
            name: {
                "matrices": len(layers),
                "deficient": sum(layer.rank_deficiency > 0 for layer in layers),
                **{measure: _over_layers([getattr(layer, measure) for layer in layers]) for measure in MEASURES},
            }
            for name, layers in types.items()
        }

    def as_dict(self) -> dict[str, Any]:
        """Everything but the singular values themselves, as JSON types."""
        return {
            "rank": self.rank,
            "interval": list(self.interval),
            "matrices": len(self.layers),
            "deficient": [layer.name for layer in self.layers if layer.rank_deficiency],
            "module_types": self.by_type(),
            "layers": [asdict(layer) for layer in self.layers],
        }


def spectrum(
    weights: Sequence[LinearWeight],
    store: Store | None,
    *,
    rank: int = 64,
    interval: tuple[float, float] = (0.1, 1.1),
    device: str = "cpu",
    procs: int = 1,
    show: Show | None = None,
) -> Spectrum:
    """Measure the singular values of weights.

    Args:
        weights: of a checkpoint.
        store: where the singular values are kept; None computes them each time.
        rank: r of the energies.
        interval: low and high.
        device: see `milora.decompositions.workers.fill`.
        procs: processes on this machine; more than one need a store.
        show: told how far it is.

    Raises:
        MiloraError: a rank over the smaller side of a weight, an interval that is none, a weight with NaN or Inf.
    """
    low, high = interval
    if not 0 <= low < high < float("inf"):
        raise MiloraError(f"interval: got {low:g} to {high:g}, allowed two numbers from 0 on, the smaller one first")
    if rank < 1:
        raise MiloraError(f"rank: got {rank}, allowed 1 or more")
    check_ranks(weights, rank)
    if store is None and procs > 1:
        raise MiloraError(f"procs: got {procs}, allowed 1 where the store is switched off")
    if store is not None:
        filled = fill(weights, (Part.values(),), store, device=device, procs=procs, show=show)
        if filled is not None and filled.problem:
            raise MiloraError(filled.problem)
    types = module_types([w.name for w in weights])
    layers, values = [], []
    for weight in weights:
        S = _values(weight, store, device)
        layers.append(Layer(weight.name, types[weight.name], layer_of(weight.name), weight.shape,
                            **measures(S, weight.shape, rank, interval)))  # fmt: skip
        values.append(S.cpu())
    return Spectrum(layers, values, rank, interval)


def measures(S: Tensor, shape: tuple[int, int], rank: int, interval: tuple[float, float]) -> dict[str, Any]:  # S (k,)
    """The measures of one spectrum, computed in float64."""
    S = S.double()
    first, last = float(S[0]), float(S[-1])
    # Relative to s_1, so that no square overflows or vanishes.
    s = S / first if first > 0 else S
    energy, total = s.square(), float(s.square().sum())
    p = s[s > 0] / s.sum()
    threshold = torch.finfo(torch.float32).eps * max(shape) ** 0.5 * first
    return {
        "sigma_max": first,
        "sigma_median": float(S.median() if len(S) % 2 else S[len(S) // 2 - 1 : len(S) // 2 + 1].mean()),
        "sigma_min": last,
        "condition": first / last if last > 0 else None,
        "effective_rank": float((-p * p.log()).sum().exp()) if first > 0 else 0.0,
        "stable_rank": total,
        "energy_bottom": float(energy[-rank:].sum()) / total if first > 0 else None,
        "energy_top": float(energy[:rank].sum()) / total if first > 0 else None,
        "in_interval": float(((interval[0] <= S) & (interval[1] >= S)).double().mean()),
        "rank_deficiency": int((threshold >= S).sum()),
    }


def layer_of(name: str) -> int | None:
    """The first number in a module's name."""
    number = next((part for part in name.split(".") if part.isdigit()), None)
    return None if number is None else int(number)


def module_types(names: Sequence[str]) -> dict[str, str]:
    """The type of each module: what follows the layer's number, without further numbers, as short as is clear."""
    tails = {name: _tail(name) for name in names}
    long = set(tails.values())
    leaves = [tail.rsplit(".", 1)[-1] for tail in long]
    return {n: leaf if leaves.count(leaf := t.rsplit(".", 1)[-1]) == 1 else t for n, t in tails.items()}


def _tail(name: str) -> str:
    after = re.sub(r"^.*?\.\d+\.", "", name)
    return ".".join(part for part in after.split(".") if not part.isdigit())


def _values(weight: LinearWeight, store: Store | None, device: str) -> Tensor:  # (k,)
    W = weight.load().to(device)
    try:
        return singular_values(W) if store is None else store.compute(W, Part.values(), name=weight.name).S
    except MiloraError as error:
        raise MiloraError(f"{weight.name}: {error}") from error


def _over_layers(values: Sequence[float | None]) -> dict[str, float | None]:
    there = [value for value in values if value is not None]
    if not there:
        return {"median": None, "min": None, "max": None}
    return {"median": median(there), "min": min(there), "max": max(there)}

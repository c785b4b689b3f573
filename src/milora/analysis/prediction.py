"""How far a method's first steps move each weight beside another method's: predicted, and measured.

    ||dW|| ~ lr s sqrt(in ||L0||^2 + out ||R0||^2)           (`milora.methods.first_steps`)

A ratio is of root sums of squares over the weights of a type, or over all: the prediction is of the first steps, and
holds while the directions of the steps do. It depends on the weights' own scale for methods on singular vectors, and
not for LoRA.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from milora.adapters.build import method_names
from milora.adapters.config import SpectralConfig
from milora.adapters.first_steps import adapted_layers, adapter_steps, layer_steps, method_steps, ratio_settings
from milora.analysis.spectrum import module_types
from milora.decompositions import Part, Store
from milora.decompositions.workers import Show, fill
from milora.errors import MiloraError
from milora.linalg import SVD
from milora.linalg.values import values
from milora.methods import METHODS, Factors, get_method
from milora.methods.first_steps import UNPREDICTED, diagonal
from milora.models.weights import LinearWeight, linear_weights

AGAINST = "lora"
# Multiplications, out in min(out, in) over all weights, that are no reason to ask first: some minutes on a CPU.
_QUICK = 2e12


def predicted_ratios(model: nn.Module, against: str = AGAINST, adapter: str = "default") -> dict[str, Any]:
    """How far a live adapter's first steps move the weights, as a ratio to another method's at the same rate.

    Args:
        model: an adapted model before it is trained: an adapter of this package's, or PEFT's LoRA, rsLoRA or DoRA.
        against: the other method, with its own default alpha and the adapter's ranks.
        adapter: the adapter's name.

    Returns:
        {"by_type": {module type: ratio}, "all": ratio}.

    Raises:
        MiloraError: a method whose first steps are not predicted (AdaLoRA, VeRA, `as_published`).
    """
    config: Any = getattr(model, "peft_config", {}).get(adapter)
    if config is None:
        raise MiloraError(f"predicted_ratios: got a model without an adapter {adapter!r}, allowed an adapted one")
    return ratios(adapter_steps(model, adapter), layer_steps(adapted_layers(model), ratio_settings(config, against)))


def measured_ratios(record: Mapping[str, Any], against: Mapping[str, Any]) -> dict[str, Any]:
    """How far a run has moved the weights, as a ratio to another run.

    Args:
        record: `analysis.json` of the one: "modules", each with "module" and "norm_dW".
        against: of the other.

    Returns:
        As `predicted_ratios`, over the modules that both have.
    """
    norms = [{m["module"]: m["norm_dW"] for m in r["modules"] if m["norm_dW"] is not None} for r in (record, against)]
    return ratios(norms[0], norms[1])


def ratios(norms: Mapping[str, float], against: Mapping[str, float]) -> dict[str, Any]:
    """Root sums of squares over the weights that both have, divided: by module type, and over all.

    A ratio to nothing is None.
    """
    both = [name for name in norms if name in against]
    by_type: dict[str, list[str]] = {}
    for name, kind in module_types(both).items():
        by_type.setdefault(kind, []).append(name)

    def ratio(names: Sequence[str]) -> float | None:
        above, below = (total(of[n] for n in names) for of in (norms, against))
        return above / below if below > 0 else None

    return {"by_type": {kind: ratio(names) for kind, names in by_type.items()}, "all": ratio(both)}


def total(norms: Iterable[float]) -> float:
    """The norm of what several weights move together: the root of the sum of squares."""
    return math.sqrt(math.fsum(n * n for n in norms))


def checkpoint_ratios(
    weights: Sequence[LinearWeight],
    store: Store | None,
    *,
    r: int = 32,
    against: str = AGAINST,
    device: str = "cpu",
    procs: int = 1,
    show: Show | None = None,
) -> dict[str, dict[str, Any] | None]:
    """For each method of a recipe, how far its first steps move a checkpoint's weights as a ratio to another method's.

    No model is built, and one weight is read at a time; all methods are predicted from its singular values.

    Args:
        weights: of a checkpoint.
        store: where the singular values are kept; None computes them each time.
        r: rank; alphas are each method's own.
        against: the other method.
        device, procs, show: see `milora.decompositions.workers.fill`.

    Returns:
        As `predicted_ratios` by method; None for one that is not predicted, or has no such rank on some weight.
    """
    steps: dict[str, dict[str, float] | None] = {method: {} for method in method_names()}
    if store is not None:
        filled = fill(weights, (Part.values(),), store, device=device, procs=procs, show=show)
        if filled is not None and filled.problem:
            raise MiloraError(filled.problem)
    for weight in weights:
        svd = _singular_values(weight, store, device)
        for method, found in steps.items():
            step = _step_of(method, r, weight, svd) if found is not None else None
            if found is not None and step is not None:
                found[weight.name] = step
            else:
                steps[method] = None
    below = steps[against]
    if below is None:
        raise MiloraError(f"against: got {against!r}, whose first steps are not predicted at rank {r}")
    return {method: found and ratios(found, below) for method, found in steps.items()}


def weights_at_hand(
    model: str, targets: str | Sequence[str], asked: bool | None = None
) -> tuple[list[LinearWeight], str]:
    """The weights that `checkpoint_ratios` would read, or none and the reason.

    Args:
        model: a folder or a hub name; nothing is fetched.
        targets: which weights, as `milora.models.targets.parse_targets` gives them.
        asked: True where they are to be had whatever it costs, False where not at all; None where they lie here, and
            their decomposition takes no longer than some minutes.

    Raises:
        MiloraError: with `asked=True`, weights that are not here or cannot be read.
    """
    if asked is False:
        return [], ""
    try:
        weights = linear_weights(model, targets, fetch=False).weights
    except MiloraError as error:
        if asked:
            raise
        return [], str(error)
    work = sum(w.shape[0] * w.shape[1] * min(w.shape) for w in weights)
    if asked or work <= _QUICK:
        return weights, ""
    return [], f"{len(weights)} large matrices to decompose, --predict does it"


def _singular_values(weight: LinearWeight, store: Store | None, device: str) -> SVD:
    W = weight.load().to(device)
    return values(W) if store is None else store.compute(W, Part.values(), name=weight.name)


def _step_of(method: str, r: int, weight: LinearWeight, svd: SVD) -> float | None:
    ranked = method in METHODS and METHODS[method].ranked
    if method in UNPREDICTED or (ranked and r > len(svd)):
        return None
    settings = {"method": method, "lora_r": r}
    return method_steps(settings, {weight.name: weight.shape}, lambda n, c: _from_values(svd, c, n))[weight.name]


def predict_update(
    W: Tensor,  # (out, in)
    method: str,
    *,
    r: int = 32,
    alpha: float | None = None,
    store: Store | None = None,
    **settings: Any,
) -> float:
    """||dW||_F / lr of one weight under a method's first steps.

    Args:
        W: the weight.
        method: its name in a recipe.
        r: rank.
        alpha: None is the method's own: r, or 2r for LoRA and its kin.
        store: where its singular values are read from and kept; None computes them.
        settings: further recipe keys, `use_rslora` or `method_settings`.

    Raises:
        MiloraError: a method that is not predicted, a rank that the weight does not have.
    """
    asked = {"method": method, "lora_r": r, "lora_alpha": alpha, **settings}
    out, in_ = W.shape

    def factors(name: str, config: SpectralConfig) -> Factors:
        return _from_values(values(W) if store is None else store.compute(W, Part.values()), config, name)

    return method_steps(asked, {"weight": (out, in_)}, factors)["weight"]


def _from_values(svd: SVD, config: SpectralConfig, name: str) -> Factors:
    return get_method(config.method).factors(diagonal(svd.S, svd.resolution), config.choice(name))

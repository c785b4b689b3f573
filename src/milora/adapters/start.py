"""The factors at the start, of one layer or of all targeted ones; read from the store where it holds them."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import cast

import torch
from peft.utils.integrations import check_deepspeed_zero3_enabled, gather_params_ctx
from torch import Tensor, nn

from milora.adapters.base_layers import keeps_transposed
from milora.adapters.config import SpectralConfig
from milora.adapters.layer import SpectralLinear
from milora.adapters.quantised import original_weight, read_weight
from milora.decompositions import Digest, Store, StoredDecomposition, default_store, shared_out
from milora.errors import MiloraError
from milora.linalg import Decomposition
from milora.methods import Factors, get_method
from milora.models.weights import DTYPES, LinearWeight


@contextmanager
def base_weight(target: nn.Module) -> Generator[Tensor]:  # (out, in)
    """The weight of a base or adapted layer as it is without adapters: whole, dequantised, unmerged."""
    base = target.get_base_layer() if isinstance(target, SpectralLinear) else target
    with gather_params_ctx(base.parameters()):
        if isinstance(target, SpectralLinear):
            yield target.unmerged_weight()
        elif keeps_transposed(base):
            yield cast(Tensor, base.weight).T
        else:
            yield read_weight(base)


def layer_factors(
    W: Tensor,  # (out, in)
    config: SpectralConfig,
    key: str,
    store: Store | None,
    wait: bool = True,
    digest: Digest | None = None,
) -> Factors:
    """The factors of one layer.

    Args:
        W: its base weight.
        config: the adapter's configuration.
        key: the layer's name in the model.
        store: where decompositions are read from and kept; None decomposes and keeps nothing.
        wait: wait where another process is decomposing this weight.
        digest: the weight's digest, where it is known.

    Raises:
        Busy: with `wait=False`, where another process is decomposing this weight.
        MiloraError: the weight cannot be decomposed, with the layer's name.
    """
    choice = config.choice(key)
    svd = Decomposition(W) if store is None else StoredDecomposition(W, store, key, wait, digest)
    try:
        return get_method(config.method).factors(svd, choice)
    except MiloraError as error:
        raise MiloraError(f"layer {key}: {error}") from error


def as_made(W: Tensor, config: SpectralConfig) -> Tensor:
    """The weight in the dtype in which the adapter's unsaved bases were made of it."""
    dtype = next((dtype for dtype in DTYPES.values() if str(dtype) == f"torch.{config.base_dtype}"), W.dtype)
    return W if dtype == W.dtype else W.to(dtype)


def all_factors(
    targets: Mapping[str, nn.Module],
    config: SpectralConfig,
    digests: Mapping[str, Digest],
    originals: Mapping[str, LinearWeight] | None = None,
) -> dict[str, Factors]:
    """The factors of all targeted layers; processes that start on one store at once each compute a share.

    Args:
        targets: the base layers or adapted layers, by name.
        config: the adapter's configuration.
        digests: of their weights, by the same names.
        originals: for quantised targets, the weights to decompose in place of their own.
    """
    store = default_store()

    def work(name: str, *, wait: bool) -> Factors:
        with base_weight(targets[name]) as W:
            if originals and name in originals:
                return layer_factors(original_weight(originals[name], W), config, name, store, wait)
            made_of = as_made(W, config)
            return layer_factors(made_of, config, name, store, wait, digests.get(name) if made_of is W else None)

    # Ranks that hold shards of each weight put it together in step, so that none may go another way round.
    if check_deepspeed_zero3_enabled():
        return {n: work(n, wait=True) for n in targets}
    on_cpu = all(p.device.type == "cpu" for t in targets.values() for p in t.parameters())
    return dict(shared_out(targets, work, torch.get_num_threads() if on_cpu else 1))

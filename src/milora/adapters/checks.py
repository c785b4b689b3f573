"""What a request for an adapter must keep to, and what is said of it, layer by layer."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from torch import nn

from milora.adapters.base_layers import features, is_linear
from milora.adapters.config import SpectralConfig
from milora.adapters.embedding import check_embedding
from milora.adapters.experts import SpectralExperts
from milora.adapters.layer import SpectralLinear
from milora.errors import MiloraError
from milora.methods import get_method
from milora.models.digest import Digest
from milora.models.fingerprint import exact_fingerprint, fingerprint
from milora.models.targets import matching_pattern


def check_targets(targets: Mapping[str, nn.Module], config: SpectralConfig) -> None:
    """Check the targeted layers against a configuration.

    Raises:
        MiloraError: a pattern that matches none, a layer of another kind, a rank that a weight does not have.
    """
    for name in ("rank_pattern", "alpha_pattern"):
        unused = [p for p in getattr(config, name) if not any(matching_pattern([p], t) for t in targets)]
        if unused:
            raise MiloraError(f"{name}: {unused[0]!r} matches none of the {len(targets)} targeted modules")
    for name, target in targets.items():
        if isinstance(target, SpectralLinear):
            out, in_ = target.out_features, target.in_features
        elif is_linear(target) or isinstance(target, nn.Embedding):
            in_, out = features(target)
        else:
            kind = type(target).__name__
            raise MiloraError(f"target_modules: {name} is a {kind}, allowed Linear, Conv1D or Embedding")
        if isinstance(target, nn.Embedding):
            check_embedding(name, target, config)
        method, choice = get_method(config.method), config.choice(name)
        q, key = method.width(min(out, in_), choice), "r" if method.ranked else "svd_rank"
        if q > min(out, in_):
            raise MiloraError(f"{key}: got {q} for {name} ({out} x {in_}), allowed 1 to {min(out, in_)}")
        method.core(q, choice)


def check_fingerprint(
    config: SpectralConfig,
    digests: Mapping[str, Digest],
    hint: str = "--force (load_adapter(..., force=True)) loads it all the same",
) -> None:
    """Compare a base with the one that a saved adapter was made on; both must be of one precision class.

    Args:
        config: the saved adapter's configuration.
        digests: of the base's targeted weights, by the modules' names.
        hint: what may be done about it.

    Raises:
        MiloraError: the weights have other values.
    """
    found = fingerprint(sorted(digests.items()))
    if config.base_fingerprint != found:
        made_on = config.base_fingerprint
        raise MiloraError(f"adapter: it was made on a base with fingerprint {made_on}, this base has {found}; {hint}")


def check_values(config: SpectralConfig, digests: Mapping[str, Digest]) -> None:
    """Unsaved bases are made again of the very weights that they were made of.

    Args:
        config: the saved adapter's configuration.
        digests: of the base's targeted weights in the dtype in which they were decomposed, by the modules' names.

    Raises:
        MiloraError: the weights have other values.
    """
    if config.base_values not in (None, exact_fingerprint(digests)):
        raise MiloraError(
            f"adapter: was saved without L0 and R0, which were made of other weights in {config.base_dtype}; allowed a"
            f" base of their values (dtype {config.base_dtype}), or save_bases=True"
        )


def check_leaves(model: nn.Module) -> None:
    """What a run trains must be able to leave in PEFT's form, which is written at its end.

    Raises:
        MiloraError: an adapted embedding with a magnitude, or without its bases; bases of dequantised weights unsaved.
    """
    configs = getattr(model, "peft_config", {}).values()
    for config in (config for config in configs if isinstance(config, SpectralConfig)):
        embedding = min(config.embedding_modules or (), default=None)
        if embedding is not None and config.magnitude:
            raise MiloraError(f"magnitude: got true with the embedding {embedding}, allowed in a run on linear layers")
        if embedding is not None and not config.keeps_bases:
            raise MiloraError(f"save_bases: got false with the embedding {embedding}, allowed true")
        if config.decompose_from == "dequantised" and not config.keeps_bases:
            raise MiloraError("save_bases: got false on dequantised weights, which nobody can read again, allowed true")


def warn_of_dead_triplets(model: nn.Module, adapter_name: str) -> None:
    """Say which layers were given triplets whose singular value is zero."""
    dead: dict[str, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, SpectralLinear | SpectralExperts) and module.dead.get(adapter_name):
            dead[name] = module.dead[adapter_name]
    if dead:
        named = ", ".join(f"{n} ({d})" for n, d in list(dead.items())[:3]) + (", ..." if len(dead) > 3 else "")
        warnings.warn(
            f"{sum(dead.values())} chosen singular values in {len(dead)} layers are zero to float32's resolution:"
            f" {named}; their triplets would get no gradient, so they start as MiCA's do (L0 = u, R0 = 0)",
            stacklevel=3,
        )

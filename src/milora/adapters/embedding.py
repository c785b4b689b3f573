"""`SpectralEmbedding`: the equation on an embedding, whose matrix is W = W_emb^T  (dim, vocabulary).

A token's id i stands for the unit vector e_i, so that R e_i is a column of R:

    y_i = W e_i + s (L C R - L0 C0 R0) e_i,    R e_i = R[:, i]

A layer that multiplies its output by `embed_scale` does so with both terms. For MiCA (arXiv 2604.01694) L0 = U_m
(dim, r) is frozen and R = 0 (r, vocabulary) trains.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from milora.adapters.config import SpectralConfig
from milora.adapters.layer import SpectralLinear
from milora.adapters.without_base import SpectralLinearWithoutBase
from milora.errors import MiloraError
from milora.methods import Bracket


class SpectralEmbedding(SpectralLinear):
    """A base embedding and, by adapter name, the factors of its adapters; its weight is stored (in, out).

    Dropout on the input does not exist here: the input is a number, not a vector.
    """

    def _applied(self, bracket: Bracket, x: Tensor, name: str) -> Tensor:  # ids (...) -> (..., dim)
        base: Any = self.get_base_layer()
        scale: Any = getattr(base, "embed_scale", 1.0)
        if isinstance(scale, Tensor):  # the base rounds it to the weight's dtype
            scale = scale.to(self.weight.dtype).to(bracket.L0.dtype)

        def columns(Q: Tensor) -> Tensor:  # (q, vocabulary) -> (..., q)
            return F.embedding(x, Q.T, base.padding_idx, scale_grad_by_freq=base.scale_grad_by_freq)

        if bracket.core is not None:
            assert bracket.c is not None and bracket.R0 is not None
            P, z = bracket.L0, bracket.core.apply(bracket.c, columns(bracket.R0), bracket.indices)
        else:
            P, Q = bracket.pair()
            z = columns(Q)
        return F.linear(z * bracket.scale, P) * scale


def layer_class(target: nn.Module, config: SpectralConfig) -> type[SpectralLinear]:
    """The layer that adapts a base layer."""
    if config.drop_base:
        return SpectralLinearWithoutBase
    return SpectralEmbedding if isinstance(target, nn.Embedding) else SpectralLinear


def embeddings_among(targets: Mapping[str, nn.Module]) -> list[str] | None:
    """The names of the embeddings, for the configuration: an exported LoRA calls their factors otherwise."""
    return sorted(n for n, t in targets.items() if isinstance(t, nn.Embedding | SpectralEmbedding)) or None


def check_embedding(name: str, embedding: nn.Embedding, config: SpectralConfig) -> None:
    """An adapted lookup must be a lookup, at most scaled.

    Raises:
        MiloraError: it does something else with the ids or the vectors, or renormalises its weight.
    """
    scale: Any = getattr(embedding, "embed_scale", None)
    scaled = isinstance(scale, int | float) or (isinstance(scale, Tensor) and scale.numel() == 1)
    plain = type(embedding).forward is nn.Embedding.forward
    more = [n for n, _ in embedding.named_parameters() if n != "weight"]
    if more or not (plain or scaled):
        kind = type(embedding).__name__
        raise MiloraError(
            f"target_modules: {name} is a {kind}, whose lookup is its own, allowed nn.Embedding or one that scales it"
        )
    if config.drop_base:
        raise MiloraError(f"drop_base: got {name}, an embedding, allowed for linear layers")
    if embedding.max_norm is not None:
        raise MiloraError(f"target_modules: {name} has max_norm, which rewrites its weight, allowed without")

"""Merge an adapter into the quantised base that it was trained on, and say what rounding costs.

    T = W + s (L R - L0 R0)         W the dequantised base weight,  M = T quantised again
    cost of a layer  =  ||M - T||_F / ||T||_F

The quantised base is rounded already; what is merged into it is rounded once more, on nearly the same coarse grid,
which takes most of a small update away: `of_update` says how much. Merging into the checkpoint's high-precision weights
(`milora.adapters.merge.merge_adapter`) keeps the whole update, on a base that is not the one it was trained on but the
one that was meant. Which of the two is the better model is a question to a text: their losses on it are told.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from torch.nn import functional as F

from milora.adapters.attach import load_adapter
from milora.adapters.config import SpectralConfig
from milora.adapters.export import check_free
from milora.adapters.merge import merge_adapter
from milora.adapters.quantised import base_of
from milora.adapters.tied import check_not_tied
from milora.errors import MiloraError
from milora.models.atomic import replacing
from milora.models.load import load_model, load_processor, load_tokenizer, stored_quantization
from milora.models.quantised import QUANTIZATIONS, dequantised, quantization_of

TOKENS = 512


@dataclass(frozen=True)
class LogitsChange:
    """How merging moved the logits on a text, from those of the adapter on its quantised base.

    Attributes:
        tokens: of the text, at most 512.
        mean, largest: of |difference| over all logits.
        kl: KL(unmerged || merged), nats per token.
        loss, merged_loss: of the text, nats per token, before and after.
    """

    tokens: int
    mean: float
    largest: float
    kl: float
    loss: float
    merged_loss: float


@dataclass(frozen=True)
class MergeCost:
    """What merging into a quantised base costs.

    Attributes:
        layers: ||M - T||_F / ||T||_F of each merged layer; empty where nothing is quantised again.
        total: the same over all layers together.
        of_update: ||M - T||_F / ||T - W||_F over all layers together: 1 is an error as large as what was trained.
        logits: on a text, if one was given.
    """

    layers: dict[str, float]
    total: float
    of_update: float
    logits: LogitsChange | None = None

    @property
    def worst(self) -> tuple[str, float]:
        """The layer that costs most, and its cost."""
        return max(self.layers.items(), key=lambda item: item[1], default=("", 0.0))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        name, cost = self.worst
        return {**asdict(self), "worst_layer": name, "worst": cost}


def merge_quantised(
    adapter: str | Path,
    model_name_or_path: str | Path,
    output: str | Path,
    *,
    quantization: str | None,
    dtype: str = "auto",
    high_precision: bool = False,
    text: str | None = None,
    overwrite: bool = False,
    force: bool = False,
) -> MergeCost:
    """Write the quantised base with an adapter merged into it, and its tokenizer; measure what it costs.

    Args:
        adapter: the folder of the saved adapter, of this package or plain LoRA.
        model_name_or_path: the high-precision base, or one that is quantised in its checkpoint.
        output: the folder to write.
        quantization: of the base that the adapter was trained on; one of `milora.models.quantised.QUANTIZATIONS`, or
            None for a base that is quantised in its checkpoint.
        dtype: of the base when it was quantised.
        high_precision: write the high-precision base with the adapter merged into it instead.
        text: measure on it how the logits change.
        overwrite: replace the folder if it stands.
        force: merge also into a base with another fingerprint.

    Raises:
        MiloraError: see `load_model` and `load_adapter`; `output` exists; a text of less than two tokens;
            `high_precision` with a base that has none.
    """
    target = Path(output).expanduser()
    check_free(target, overwrite, adapter, model_name_or_path)
    stored = stored_quantization(model_name_or_path)
    if stored:
        if high_precision:
            raise MiloraError(
                f"--high_precision: {model_name_or_path} is itself quantised ({stored}), allowed another base"
            )
        quantization = None
    model = load_adapter(load_model(model_name_or_path, dtype=dtype, quantization=quantization), adapter, force=force)
    tokenizer = load_tokenizer(model_name_or_path)
    ids = None if text is None else _tokens(tokenizer, text)
    before = None if ids is None else _logits(model, ids)

    def measured(cost: MergeCost, merged: Any) -> MergeCost:
        if before is None or ids is None:
            return cost
        return replace(cost, logits=_change(before, _logits(merged, ids), ids))

    if high_precision:
        del model
        merge_adapter(adapter, model_name_or_path, target, dtype=dtype, overwrite=overwrite, force=force)
        cost = MergeCost({}, 0.0, 0.0)
        return cost if before is None else measured(cost, load_model(target, dtype=dtype))
    _check_kinds(model)
    check_not_tied(model)
    cost = _merge_layers(model)
    merged: Any = model.unload()
    with replacing(target) as temporary:
        merged.save_pretrained(temporary)
        (load_processor(model_name_or_path) or tokenizer).save_pretrained(temporary)
    return measured(cost, merged)


def _check_kinds(model: Any) -> None:
    """PEFT merges no more than plain LoRA into a quantised weight, or leaves the rounding untold."""
    for config in model.peft_config.values():
        dora = getattr(config, "use_dora", False)
        if dora or type(config) not in (SpectralConfig, LoraConfig):
            kind = "DoRA" if dora else config.peft_type.value
            raise MiloraError(
                f"merge: got {kind} on a quantised base, allowed milora's own or a plain LoRA, or --high_precision"
            )


@torch.no_grad()
def _merge_layers(model: Any) -> MergeCost:
    """Merge every layer in place and measure it on the way, one at a time."""
    layers: dict[str, float] = {}
    lost = whole = update = 0.0
    for name, layer in _adapted_layers(model):
        W = dequantised(base_of(layer)) if quantization_of(base_of(layer)) in QUANTIZATIONS else None
        T = _merge(layer)
        if W is None:
            continue
        M = dequantised(base_of(layer)).float()
        T = T.float() if T is not None else M
        off, size, moved = (float(torch.linalg.vector_norm(x)) ** 2 for x in (M - T, T, T - W.float()))
        layers[name] = (off / size) ** 0.5 if size else 0.0
        lost, whole, update = lost + off, whole + size, update + moved
    return MergeCost(layers, (lost / whole) ** 0.5 if whole else 0.0, (lost / update) ** 0.5 if update else 0.0)


def _merge(layer: Any) -> Tensor | None:  # T (out, in), or None where no adapter of the layer is active
    """Merge one layer; returns what its weight would be without rounding."""
    base = base_of(layer)
    if not hasattr(layer, "spectral_L0"):  # plain LoRA: PEFT's layers for bitsandbytes set the weight by themselves
        W = dequantised(base).float() if quantization_of(base) in QUANTIZATIONS else base.weight.float()
        deltas = [layer.get_delta_weight(n) for n in layer.active_adapters if n in layer.lora_A]
        layer.merge(safe_merge=True)
        return sum((d.float() for d in deltas), W) if deltas else None  # pyright: ignore[reportCallIssue, reportArgumentType]
    seen: list[Tensor] = []
    set_base_weight = layer.set_base_weight

    def watch(weight: Tensor) -> None:
        seen.append(weight)
        set_base_weight(weight)

    layer.set_base_weight = watch
    try:
        layer.merge(safe_merge=True)
    finally:
        del layer.set_base_weight
    return seen[-1] if seen else None


def _adapted_layers(model: Any) -> Iterator[tuple[str, Any]]:
    inside = "base_model.model."
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            yield name.removeprefix(inside), module


def _tokens(tokenizer: Any, text: str) -> Tensor:  # (1, n)
    ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=TOKENS)["input_ids"]
    if ids.shape[1] < 2:
        raise MiloraError(f"text: got {ids.shape[1]} tokens, allowed 2 or more")
    return ids


@torch.no_grad()
def _logits(model: Any, ids: Any) -> Tensor:  # (n, vocabulary), float32 on the CPU
    return model.eval()(input_ids=ids.to(model.device)).logits[0].float().cpu()


def _change(before: Tensor, after: Tensor, ids: Tensor) -> LogitsChange:  # (n, vocabulary) twice, (1, n)
    off = (after - before).abs()
    log_p, log_q = F.log_softmax(before.double(), dim=-1), F.log_softmax(after.double(), dim=-1)
    kl = float((log_p.exp() * (log_p - log_q)).sum(dim=-1).mean())
    loss, merged_loss = (float(F.nll_loss(p[:-1], ids[0, 1:])) for p in (log_p, log_q))
    return LogitsChange(before.shape[0], float(off.mean()), float(off.max()), kl, loss, merged_loss)

"""The same function with weights of another size: norm gains take over what linear weights give up.

Methods that start from the weight's own singular vectors take steps whose length depends on the weight's size; LoRA's
do not (`milora.methods.first_steps`). So a comparison between them is one at a weight scale, and a model can be brought
to another scale to see it. In a block of the Llama family, with RMSNorm gains g1 and g2,

    h = g1 * norm(x),   q, k, v = W_q h, W_k h, W_v h                               x += W_o attention(q, k, v)
    h = g2 * norm(x),   gate, up = W_gate h, W_up h                                 x += W_down (act(gate) * up)

the following changes no logit, for powers of two a, u and d:

    g1 -> a g1,     W_q, W_k, W_v  ->  1/a of each                  q, k, v are what they were
    g2 -> u d g2,   W_gate -> W_gate / (u d)                        gate is, and must be, what it was: act is no line
                    W_up   -> W_up / u                              up is d times what it was,
                    W_down -> W_down / d                            which W_down takes back

Two gains feed three weights of an MLP, so that the gate's divisor is the product of the others: with 8 for up and down
it is 64. A bias of q, k, v, gate or down stays, one of up is multiplied by d. W_o stays: what could pay for it is W_v,
whose divisor is the gain's. Embeddings, tied or not, the last norm and the head see the same x.

Powers of two change exponents alone: each product and each sum is the old one times a power of two, and the logits are
the same to the last bit in float32, bfloat16 and float64, as long as nothing falls below the smallest normal number. A
weight whose division is not exact is refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from milora.errors import MiloraError
from milora.models.atomic import check_free, replacing
from milora.models.checkpoint import check_checkpoint
from milora.models.hub import locate
from milora.models.shards import MAX_SHARD_SIZE, Shards, copy_beside
from milora.models.weights import DTYPES, SafeTensor, stored_tensors

# Whose blocks are those of the equations, by config.json's `architectures`.
ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM")
NOTE = "milora_rescale"  # in config.json
SCALE = 8.0

_NAME = re.compile(r"(?:model\.)?layers\.(\d+)\.(?:self_attn\.|mlp\.)?(\w+)\.(weight|bias)")
_ATTENTION, _MLP = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj", "down_proj")
_NORMS = ("input_layernorm", "post_attention_layernorm")


@dataclass(frozen=True)
class Scales:
    """What a rescale divides weights by; powers of two.

    Attributes:
        attention: a, of q, k and v.
        up: u.
        down: d.
    """

    attention: float
    up: float
    down: float

    def divisors(self) -> dict[str, float]:
        """By module type; the gate's is u d."""
        mlp = {"gate_proj": self.up * self.down, "up_proj": self.up, "down_proj": self.down}
        return dict.fromkeys(_ATTENTION, self.attention) | mlp

    def gains(self) -> dict[str, float]:
        """What the norms are multiplied by."""
        return {"input_layernorm": self.attention, "post_attention_layernorm": self.up * self.down}

    def factor(self, key: str) -> float:
        """What one tensor of the checkpoint is multiplied by, by its name there."""
        found = _NAME.fullmatch(key)
        if found is None:
            return 1.0
        kind, part = found[2], found[3]
        if part == "bias":
            return self.down if kind == "up_proj" else 1.0
        return self.gains().get(kind) or 1 / self.divisors().get(kind, 1.0)


@dataclass(frozen=True)
class Rescaled:
    """What was written.

    Attributes:
        folder: where.
        scales: by what.
        std: the standard deviation of all weights of a module type, before and after.
    """

    folder: Path
    scales: Scales
    std: dict[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])

    def as_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "folder": str(self.folder),
            "divisors": self.scales.divisors(),
            "gains": self.scales.gains(),
            "std": {kind: {"before": before, "after": after} for kind, (before, after) in self.std.items()},
        }


def rescale(
    model: str | Path,
    output: str | Path,
    *,
    scale: float = SCALE,
    gate_scale: float | None = None,
    to_std: float | None = None,
    max_shard_size: str = MAX_SHARD_SIZE,
    overwrite: bool = False,
) -> Rescaled:
    """Write a model of the Llama family with smaller weights and larger norm gains, shard by shard.

    Args:
        model: a folder of safetensors, or a hub name.
        output: the folder to write: weights, tokenizer, and config.json with a note of what was done.
        scale: what q, k, v and up are divided by, a power of two; below 1 it makes them larger.
        gate_scale: what gate is divided by, a power of two; down by gate_scale / scale. None is scale^2.
        to_std: in place of both, a standard deviation: q, k and v together, up and down are each divided by the
            power of two that brings them nearest to it.
        max_shard_size: of one file.
        overwrite: replace the folder if it stands.

    Raises:
        MiloraError: another architecture, a quantised or GGUF checkpoint, a scale that is no power of two, a weight
            whose division is not exact, `output` exists or is the model's own folder.
    """
    target = Path(output).expanduser()
    check_free(target, overwrite, model)
    folder, gguf_file = locate(model)
    if gguf_file is not None:
        raise MiloraError(f"rescale: {folder / gguf_file} is a GGUF file, allowed safetensors")
    if target.resolve() == folder.resolve():
        raise MiloraError(f"output: {target} is the model's own folder, allowed another")
    check_checkpoint(folder)
    config = _config(folder)
    tensors = stored_tensors(folder)
    _check_tensors(tensors, config, folder)
    before = _std(tensors)
    scales = _given(scale, gate_scale) if to_std is None else _chosen(before, to_std)
    shards = Shards(tensors, max_shard_size)
    with replacing(target) as temporary:
        temporary.mkdir()
        shards.write(temporary, lambda key: _multiplied(tensors[key], scales.factor(key)))
        copy_beside(folder, temporary, leave=["config.json"])
        noted = _noted(config, scales)
        (temporary / "config.json").write_text(json.dumps(noted, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return Rescaled(target, scales, {k: (s, s / scales.divisors().get(k, 1.0)) for k, s in before.items()})


def _given(scale: float, gate_scale: float | None) -> Scales:
    gate_scale = scale * scale if gate_scale is None else gate_scale
    for name, value in (("scale", scale), ("gate_scale", gate_scale)):
        # Beyond 2^15 no weight is left to speak of.
        if not (2**-15 <= value <= 2**15 and math.frexp(value)[0] == 0.5):
            raise MiloraError(f"{name}: got {value:g}, allowed a power of two from 2^-15 to 2^15 (4, 8, 16, 64)")
    return Scales(scale, scale, gate_scale / scale)


def _chosen(std: Mapping[str, float], wanted: float) -> Scales:
    """The powers of two that bring the weights nearest to a standard deviation."""
    if not 0 < wanted < float("inf"):
        raise MiloraError(f"to_std: got {wanted:g}, allowed a number above 0")
    if not all(std[kind] > 0 for kind in ("up_proj", "down_proj")) or not any(std[kind] > 0 for kind in _ATTENTION):
        raise MiloraError("to_std: got a model whose weights are all zero, allowed one with weights")
    attention = math.sqrt(sum(std[kind] ** 2 for kind in _ATTENTION) / len(_ATTENTION))
    return Scales(*(2.0 ** round(math.log2(s / wanted)) for s in (attention, std["up_proj"], std["down_proj"])))


def _config(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    named = config.get("architectures") or ["no architecture"]
    if named[0] not in ARCHITECTURES:
        raise MiloraError(f"rescale: {folder} is a {named[0]}, allowed {', '.join(ARCHITECTURES)}")
    if "quantization_config" in config:
        raise MiloraError(f"rescale: {folder} is quantised, allowed weights as they are")
    return config


def _check_tensors(tensors: Mapping[str, SafeTensor], config: Mapping[str, Any], folder: Path) -> None:
    """Each block has the equations' weights and no others."""
    known = {*_ATTENTION, *_MLP, *_NORMS, "o_proj"}
    blocks: dict[int, set[str]] = {}
    for key, stored in tensors.items():
        found = _NAME.fullmatch(key)
        if found is not None and found[2] in known:
            if stored.dtype not in DTYPES:
                raise MiloraError(f"rescale: {key} is stored as {stored.dtype}, allowed {', '.join(DTYPES)}")
            if found[3] == "weight":
                blocks.setdefault(int(found[1]), set()).add(found[2])
        elif ".layers." in f".{key}" and not key.endswith("rotary_emb.inv_freq"):
            raise MiloraError(f"rescale: {folder} holds {key}, which the blocks that are known do not have")
    for layer in range(int(config.get("num_hidden_layers", 0)) or 1):
        if missing := sorted(known - blocks.get(layer, set())):
            raise MiloraError(f"rescale: {folder} holds no {missing[0]} of layer {layer}")


def _std(tensors: Mapping[str, SafeTensor]) -> dict[str, float]:
    """The standard deviation of all entries of a module type, one weight in memory at a time."""
    sums: dict[str, list[float]] = {}
    for key, stored in tensors.items():
        found = _NAME.fullmatch(key)
        if found is not None and found[2] not in _NORMS and found[3] == "weight":
            W = stored.read().double()
            total = sums.setdefault(found[2], [0.0, 0.0, 0.0])
            for i, value in enumerate((W.numel(), float(W.sum()), float(W.square().sum()))):
                total[i] += value
    return {kind: math.sqrt(max(0.0, square / n - (s / n) ** 2)) for kind, (n, s, square) in sums.items()}


def _multiplied(stored: SafeTensor, factor: float) -> Tensor:
    """A tensor of the checkpoint times a power of two, in its own dtype.

    Raises:
        MiloraError: the product is not exact.
    """
    value = stored.read()
    if factor == 1.0:
        return value
    scaled = value * factor
    if not torch.equal(scaled / factor, value):
        raise MiloraError(
            f"rescale: {stored.key} times {factor:g} is not exact in {stored.dtype}, allowed a scale nearer to 1, or"
            " the model in float32 or bfloat16"
        )
    return scaled


def _noted(config: Mapping[str, Any], scales: Scales) -> dict[str, Any]:
    """The configuration with what was done, to what was done before."""
    noted = {"divisors": scales.divisors(), "gains": scales.gains()}
    earlier = config.get(NOTE) or {}
    for part, values in noted.items():
        noted[part] = {kind: value * float(earlier.get(part, {}).get(kind, 1.0)) for kind, value in values.items()}
    return {**config, NOTE: noted}


def largest_difference(model: str | Path, rescaled: str | Path, *, seed: int = 0, tokens: int = 64) -> dict[str, float]:
    """How far the logits of both are apart on drawn token ids, in the checkpoints' own dtype.

    Args:
        model: the one.
        rescaled: the other.
        seed: of the ids.
        tokens: how many ids a row, two rows.

    Returns:
        "logit": the largest absolute difference; "kl": the mean KL divergence in nats a token.
    """
    first, second = (_log_probabilities(folder, seed, tokens) for folder in (model, rescaled))
    p, q = (logits.log_softmax(-1) for logits in (first, second))
    return {"logit": float((first - second).abs().max()), "kl": float((p.exp() * (p - q)).sum(-1).mean())}


def _log_probabilities(model: str | Path, seed: int, tokens: int) -> Tensor:  # (2, tokens, vocabulary)
    from milora.models.load import load_model

    loaded = load_model(model, device="cpu").eval()
    length = min(tokens, loaded.config.max_position_embeddings)
    ids = torch.randint(loaded.config.vocab_size, (2, length), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return loaded(input_ids=ids).logits.double()

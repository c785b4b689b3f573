"""Quantised base models: how one is asked for, how its layers are told apart, and how their weights are read.

    bnb-4bit      bitsandbytes NF4 with doubly quantised scales, computed in bfloat16   (QLoRA, arXiv 2305.14314)
    bnb-8bit      bitsandbytes LLM.int8(), a scale for each row of the weight           (arXiv 2208.07339)
    torchao-int8  torchao Int8WeightOnlyConfig, a scale for each row of the weight
    torchao-int4  torchao IntxWeightOnlyConfig, int4 in groups of 32, each value kept in a byte

torchao's packed int4 (`Int4WeightOnlyConfig`) is not among them: its product has no gradient for the input, so that
nothing below the last adapter would train. For a quarter of bfloat16's memory there is bnb-4bit.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from milora.errors import MiloraError
from milora.models.spread import gathered

QUANTIZATIONS = ("bnb-4bit", "bnb-8bit", "torchao-int8", "torchao-int4")
INT4_GROUP = 32
_PLAIN = ("Linear", "Conv1D", "NonDynamicallyQuantizableLinear")
log = logging.getLogger("milora.models")


def quantization_config(
    quantization: str, compute_dtype: torch.dtype = torch.bfloat16, widths: Iterable[int] = ()
) -> Any:
    """transformers' configuration of a quantisation, for `from_pretrained(quantization_config=...)`.

    Args:
        quantization: one of `QUANTIZATIONS`.
        compute_dtype: of the products with a bnb-4bit weight.
        widths: the numbers of inputs of the layers; a group of torchao-int4 is 32, or less where 32 does not divide
            all of them.

    Raises:
        MiloraError: an unknown one, or its package is not installed.
    """
    if quantization not in QUANTIZATIONS:
        raise MiloraError(f"quantization: got {quantization!r}, allowed {', '.join(QUANTIZATIONS)}")
    package = "bitsandbytes" if quantization.startswith("bnb") else "torchao"
    if find_spec(package) is None:
        raise MiloraError(f"quantization {quantization}: {package} is not installed; pip install 'milora[quant]'")
    if package == "torchao":
        return _torchao_config(quantization, math.gcd(INT4_GROUP, *widths))
    from transformers import BitsAndBytesConfig

    if quantization == "bnb-8bit":
        # It says at each product that the input is cast to float16, as LLM.int8() always does.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def _torchao_config(quantization: str, group: int) -> Any:
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig
    from torchao.quantization.granularity import PerGroup
    from transformers import TorchAoConfig

    if quantization == "torchao-int8":
        # Its inductor settings also set float32's precision in products, for the whole process.
        return TorchAoConfig(Int8WeightOnlyConfig(set_inductor_config=False))
    return TorchAoConfig(
        IntxWeightOnlyConfig(
            weight_dtype=torch.int4,  # pyright: ignore[reportAttributeAccessIssue]
            granularity=PerGroup(group),
        )
    )


def quantization_of(layer: nn.Module) -> str | None:
    """What a linear layer is quantised with: one of `QUANTIZATIONS`, the name of a class that is not known here, or
    None for a plain layer and for what is no linear layer."""
    weight = getattr(layer, "weight", None)
    name = type(weight).__name__
    if name == "Params4bit":
        return "bnb-4bit"
    if name == "Int8Params":
        return "bnb-8bit"
    if type(weight).__module__.startswith("torchao."):
        int4 = getattr(weight, "target_dtype", None) == torch.int4  # pyright: ignore[reportAttributeAccessIssue]
        return "torchao-int8" if name == "Int8Tensor" else "torchao-int4" if int4 else name
    plain = type(layer).__name__ in _PLAIN or not hasattr(layer, "in_features")
    return None if plain else type(layer).__name__


@torch.no_grad()
def dequantised(layer: nn.Module) -> Tensor:  # (out, in)
    """The weight that a layer of one of the `QUANTIZATIONS` computes with, in float16, bfloat16 or float32."""
    weight: Any = layer.weight
    if type(weight).__module__.startswith("torchao."):
        return weight.dequantize()
    from bitsandbytes import functional

    if type(weight).__name__ == "Params4bit":
        return functional.dequantize_4bit(weight.data, weight.quant_state)
    # The scales are the weight's own until the first product, and the layer's from then on.
    state: Any = layer.state
    scales = state.SCB if state.SCB is not None else weight.SCB
    return functional.int8_vectorwise_dequant(weight.data, scales.to(weight.device))


def dense_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters of a model by name (tied ones once), the quantised ones dequantised, one at a time."""
    for name, parameter in model.named_parameters():
        path, _, leaf = name.rpartition(".")
        layer = model.get_submodule(path)
        quantised = leaf == "weight" and quantization_of(layer) in QUANTIZATIONS
        with gathered([parameter]):
            yield name, dequantised(layer) if quantised else parameter


def number_count(parameter: Tensor) -> int:
    """How many numbers a parameter stands for: bitsandbytes keeps two of a 4-bit weight in each byte, and ZeRO-3 a
    part of each weight in each process."""
    if type(parameter).__name__ != "Params4bit":
        return getattr(parameter, "ds_numel", parameter.numel())
    state: Any = parameter.quant_state  # pyright: ignore[reportAttributeAccessIssue]
    return math.prod(state.shape)


def prepare_quantised(model: nn.Module) -> None:
    """Make what is quantised in a model trainable below an adapter, and equal in training and evaluation.

    - bitsandbytes packs a 4-bit weight for another kernel when it first evaluates on a CPU with AVX512-BF16. That
      kernel has no gradient, without a word, and works with scales rounded to bfloat16: the base becomes another
      one. So it is kept from packing, and what is packed is unpacked (the rounded scales stay).
    - transformers takes torchao's int4 for not trainable, by the name of its configuration.
    - transformers cannot save what it read from a quantised checkpoint: it would turn back what made the weights of
      the file's tensors, and has no way back. There is nothing to turn back: they are saved as they are.
    """
    _make_savable(model)
    packed = 0
    for layer in model.modules():
        if type(getattr(layer, "weight", None)).__name__ != "Params4bit":
            continue
        layer.support_avx512bf16_for_cpu = False  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
        if getattr(layer.weight.quant_state, "packing_format_for_cpu", False):  # pyright: ignore
            _unpack(layer)
            packed += 1
    if packed:
        log.warning(
            "%d 4-bit weights were evaluated on this CPU before, which rounded their scales to bfloat16;"
            " the base is now the rounded one",
            packed,
        )
    quantizer: Any = getattr(model, "hf_quantizer", None)
    kind = type(getattr(getattr(quantizer, "quantization_config", None), "quant_type", None)).__name__
    if kind == "IntxWeightOnlyConfig":
        # Its product is one with the dequantised weight, whose gradient is torch's own.
        quantizer.__class__ = type(type(quantizer).__name__, (type(quantizer),), {"is_trainable": True})


def _make_savable(model: nn.Module) -> None:
    conversions: Any = getattr(model, "_weight_conversions", None)
    if conversions:
        kept = [c for c in conversions if not any(_is_one_way(o) for o in getattr(c, "operations", ()))]
        model._weight_conversions = kept or None  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]


def _is_one_way(operation: Any) -> bool:
    try:
        return not operation.reverse_op
    except NotImplementedError:
        return True


def _unpack(layer: Any) -> None:
    from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse

    weight, state = layer.weight, layer.weight.quant_state
    # (in / block, out) in bfloat16, with nothing quantised about them any more
    scales = state.absmax.T.reshape(-1).to(torch.float32).contiguous()
    state.original_nested = False
    weight.data, state = _convert_weight_packed_for_cpu_inverse(weight.data, state)
    state.absmax, state.nested = scales, False
    weight.quant_state = layer.quant_state = state

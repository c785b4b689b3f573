"""What vLLM and llama.cpp refuse of a LoRA adapter, or need to be told, said before it is written.

vLLM (`PEFTHelper.validate_legal` and `_validate_features` in
https://github.com/vllm-project/vllm/blob/main/vllm/lora/peft_helper.py, `MaxLoRARanks` in
https://github.com/vllm-project/vllm/blob/v0.26.0/vllm/config/lora.py): the rank must not be over `max_lora_rank`, which
is 16 unless it is told and takes only certain values up to 512; modules_to_save must be empty (newer releases pass a
classifier's `score` and `classifier`); no trained biases; no DoRA. It knows rsLoRA. Releases whose `PEFTHelper` has no
fields for rank_pattern and alpha_pattern drop them and scale every layer alike.

llama.cpp (https://github.com/ggml-org/llama.cpp/blob/master/convert_lora_to_gguf.py, and `get_scale` in
https://github.com/ggml-org/llama.cpp/blob/master/src/llama-adapter.h): the converter stops at a tensor that is neither
lora_A nor lora_B nor a norm (modules_to_save, biases, a magnitude), and at an adapter of an output head that shares its
weight with the embedding. It keeps `lora_alpha` alone, and the loader scales each layer by alpha over its own rank: so
rsLoRA, alpha_pattern and unequal ranks are scaled wrongly. Any rank loads.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from peft import LoraConfig

from milora.errors import MiloraError

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what max_lora_rank may be
VLLM_DEFAULT = 16
READERS = ("vllm", "llama.cpp")


@dataclass(frozen=True)
class Limit:
    """One thing about an adapter that a program minds.

    Attributes:
        reader: "vllm" or "llama.cpp".
        text: what it is, and what to do, in one line.
        fatal: whether the program refuses the adapter or runs it wrongly; else it needs only to be told.
    """

    reader: str
    text: str
    fatal: bool = True

    def __str__(self) -> str:
        return f"{self.reader} {'would refuse it' if self.fatal else 'loads it'}: {self.text}"


def limits(config: LoraConfig, modules: Iterable[str] = (), tied_head: str | None = None) -> list[Limit]:
    """What vLLM and llama.cpp mind of a LoRA adapter.

    Args:
        config: its configuration.
        modules: the modules that it adapts.
        tied_head: the output head's name, where it shares its weight with the embedding.
    """
    found = _rank_limits(max([config.r, *(config.rank_pattern or {}).values()]))
    saved: Any = config.modules_to_save or []
    unknown = [m for m in saved if m not in ("classifier", "score")]
    if unknown:
        found.append(Limit("vllm", f"modules_to_save ({', '.join(unknown)}); use --to merged"))
    if saved:
        found.append(Limit("llama.cpp", f"modules_to_save ({', '.join(saved)}); use --to merged"))
    for name in READERS:
        if config.bias != "none":
            found.append(Limit(name, f"trained biases (bias={config.bias!r}); use --to merged"))
        if config.use_dora:
            found.append(Limit(name, "use_dora; use --to merged"))
        if config.rank_pattern or config.alpha_pattern:
            found.append(Limit(name, "rank_pattern or alpha_pattern, which it scales wrongly; use --rank"))
    if config.use_rslora:
        found.append(Limit("llama.cpp", "use_rslora, which it scales by alpha / r; use --rank"))
    if tied_head in set(modules):
        found.append(head_limit(tied_head))
    return found


def head_limit(head: str | None) -> Limit:
    """That llama.cpp takes no adapter of an output head that shares its weight with the embedding."""
    return Limit("llama.cpp", f"{head} shares its weight with the embedding; leave it out")


def _rank_limits(r: int) -> list[Limit]:
    if r > VLLM_RANKS[-1]:
        return [Limit("vllm", f"rank {r} is over its largest max_lora_rank, {VLLM_RANKS[-1]}; use --rank")]
    if r > VLLM_DEFAULT:
        needed = next(allowed for allowed in VLLM_RANKS if allowed >= r)
        return [Limit("vllm", f"tell it --max-lora-rank {needed} (rank {r}, its default is 16)", fatal=False)]
    return []


def refuse(found: Iterable[Limit], readers: Iterable[str]) -> None:
    """Raise for what one of the programs that must load the adapter would refuse.

    Raises:
        MiloraError: an unknown program, or what is refused, all in one line.
    """
    wanted = set(readers)
    unknown = sorted(wanted - set(READERS))
    if unknown:
        raise MiloraError(f"for: got {unknown[0]!r}, allowed {', '.join(READERS)}")
    lines = [str(limit) for limit in found if limit.fatal and limit.reader in wanted]
    if lines:
        raise MiloraError("; ".join(lines))

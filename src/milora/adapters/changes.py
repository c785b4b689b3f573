"""The change of each adapted weight, by whatever adapter: W (out, in), the original weight, and dW = W' - W.

    this package's, plain LoRA, MiCA    dW = s (P_1 Q_1 + ...), read as factors            (`delta.py`)
    PiSSA of PEFT                       dW = s (B A - B0 A0), B0 A0 made again from W      (`peft_import.py`)
    any other that PEFT loads           dW = merged - W, layer by layer, merged by PEFT    (`live_changes.py`)

The first two are streamed from the adapter's file and the base's; the last needs the model in memory, and one layer
more. What starts by rewriting the base weights is measured against the checkpoint's, not against what was rewritten.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from peft import LoraConfig, PeftConfig
from torch import Tensor

from milora.adapters.attach import check_adapter, load_adapter
from milora.adapters.checks import check_fingerprint
from milora.adapters.config import SpectralConfig
from milora.adapters.delta import PLAIN_STARTS, AdapterFile, Delta, not_plain
from milora.adapters.live_changes import adapter_rank, model_changes
from milora.adapters.peft_import import pissa_file
from milora.adapters.saved_config import CONFIG, read_config
from milora.errors import MiloraError
from milora.models.changes import Changes, at_least_float32
from milora.models.digest import Digest, weight_digest
from milora.models.fingerprint import precision
from milora.models.load import load_model
from milora.models.weights import LinearWeight, linear_weights

# Starts that rewrite the base weights, and that PEFT makes again from the base alone whenever it loads them.
MADE_AGAIN = ("pissa", "olora")


def weight_changes(
    adapter: str | Path,
    base: str | Path | None = None,
    *,
    gguf_file: str | None = None,
    trust_remote_code: bool = False,
    force: bool = False,
) -> Changes:
    """The changes that a saved adapter makes, module by module.

    Args:
        adapter: its folder: of this package, or any that PEFT can load.
        base: its base model, a folder, hub name or .gguf file; by default the one that its configuration names.
        gguf_file: the GGUF file inside `base`.
        trust_remote_code: run the model's own code to learn its architecture.
        force: measure it also on a base with another fingerprint.

    Raises:
        MiloraError: no adapter there, or one that changes no linear weight; no base, another one, or one without the
            adapter's modules; a start that cannot be made again.
    """
    folder = Path(adapter).expanduser()
    check_adapter(folder)
    config = read_config(folder)
    base = base or config.base_model_name_or_path
    if not base:
        raise MiloraError(f"adapter: {folder / CONFIG} names no base model; pass model_name_or_path")
    source = Path(base) / gguf_file if gguf_file else base
    if isinstance(config, SpectralConfig) and not config.magnitude:
        return _streamed(AdapterFile(folder, base=source), source, config, trust_remote_code, force)
    if type(config) is LoraConfig:
        _check_start(config, folder)
        with suppress(MiloraError):  # factors that only PEFT knows the place of
            if not not_plain(config):
                return _streamed(AdapterFile(folder), source, config, trust_remote_code, force)
            if _is_pissa(config):
                file, delta = pissa_file(folder, source)
                return _streamed(file, source, config, trust_remote_code, force, delta)
    model = load_model(base, gguf_file=gguf_file, trust_remote_code=trust_remote_code)
    return model_changes(load_adapter(model, folder, force=force), source)


def _streamed(
    file: AdapterFile,
    source: str | Path,
    config: PeftConfig,
    trust_remote_code: bool,
    force: bool,
    delta: Callable[[str, Tensor], Delta] | None = None,
) -> Changes:
    """The changes of factors, each weight read from the base's checkpoint in its turn, in the model's order."""
    modules = [module for module in file.modules if module not in file.embeddings]
    if not modules:
        raise MiloraError(f"adapter: {file.folder} changes no linear weight")
    weights = _weights(file, modules, source, trust_remote_code)
    digests: dict[str, Digest] = {}

    def read(module: str) -> tuple[Tensor, Delta]:
        W = weights[module].load()  # (out, in)
        if isinstance(config, SpectralConfig):
            digests[module] = weight_digest(W)
        change = file.delta(module) if delta is None else delta(module, W)
        return at_least_float32(W), change

    skipped = [
        *((name, "an embedding") for name in sorted(file.embeddings)),
        *((name, "the weights of many experts") for name in file.fused),
        *((name, "trained as a whole") for name in file.other() if name.removesuffix(".weight") not in file.modules),
    ]

    def finish() -> None:
        if not isinstance(config, SpectralConfig) or force or config.base_fingerprint is None:
            return
        here = precision(weight.torch_dtype for weight in weights.values())
        if here == config.base_precision and not file.embeddings and not file.fused:
            check_fingerprint(config, digests, "--force measures it all the same")

    return Changes(list(weights), read, adapter_rank(config), finish, tuple(skipped))


def _weights(
    file: AdapterFile, modules: list[str], source: str | Path, trust_remote_code: bool
) -> dict[str, LinearWeight]:
    found = {w.name: w for w in linear_weights(source, modules, trust_remote_code=trust_remote_code).weights}
    for module in modules:
        if module not in found:
            raise MiloraError(f"base {source}: has no weight of its own for {module}")
    return {name: weight for name, weight in found.items() if name in modules}


def _is_pissa(config: LoraConfig) -> bool:
    return config.init_lora_weights == "pissa"


def _check_start(config: LoraConfig, folder: Path) -> None:
    start = config.init_lora_weights
    if start not in PLAIN_STARTS and start not in MADE_AGAIN:
        raise MiloraError(
            f"adapter: {folder / CONFIG}: init_lora_weights is {start!r}, a start that rewrote the base weights and"
            " cannot be made again; allowed: converted to a LoRA by PEFT's path_initial_model_for_weight_conversion,"
            " or brought in by milora import --initial"
        )

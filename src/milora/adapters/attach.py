"""Adapters onto models: a new one, or a saved one with everything about it checked first."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch import nn

from milora.adapters.config import SpectralConfig
from milora.adapters.layer import SpectralLinear
from milora.adapters.saved_config import CONFIG, read_config
from milora.errors import MiloraError
from milora.methods.core import Scattered
from milora.models.checkpoint import check_safetensors, is_local
from milora.models.quantised import prepare_quantised
from milora.models.targets import matching_name

WEIGHTS = "adapter_model.safetensors"
# A name that PEFT gives a tensor: modules and parameters with dots between them.
_NAME = re.compile(r"[\w\-]+(\.[\w\-]+)*")
# What PEFT raises for a configuration or a file that does not fit the model.
_REFUSALS = (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, ImportError)


def attach(model: nn.Module, config: PeftConfig) -> PeftModel:
    """Adapt a model anew; PEFT's refusals come as one line.

    Raises:
        MiloraError: nothing matches, a rank or a value that cannot be.
    """
    _check_named(model, config)
    prepare_quantised(model)
    try:
        return get_peft_model(model, config)  # pyright: ignore[reportArgumentType]
    except MiloraError:
        raise
    except (ValueError, TypeError, NotImplementedError) as error:
        said = str(error).strip() or type(error).__name__
        raise MiloraError(f"{config.peft_type} adapter: {said.splitlines()[0]}") from error


def _check_named(model: nn.Module, config: PeftConfig) -> None:
    """What a configuration names must be there: PEFT passes over a name in a list that matches nothing."""
    names = [name for name, _ in model.named_modules()]
    for key in ("target_modules", "exclude_modules", "modules_to_save", "rank_pattern", "alpha_pattern"):
        given: Any = getattr(config, key, None) or ()
        for wanted in () if isinstance(given, str) else sorted(given):
            # Patterns are regular expressions; names are whole, or stand after a dot.
            pattern = wanted if key.endswith("pattern") else re.escape(wanted)
            if matching_name(names, pattern) is None:
                raise MiloraError(f"{key}: {wanted!r} matches no module of the model")


def load_adapter(
    model: nn.Module, adapter: str | Path, *, force: bool = False, is_trainable: bool = False
) -> PeftModel:
    """Load a saved adapter, of this package or of PEFT, onto its base model.

    Args:
        model: the base model.
        adapter: a local folder, or a hub name.
        force: load it also onto a base with another fingerprint.
        is_trainable: train it further.

    Raises:
        MiloraError: no adapter there, a broken or pickled file, tensors missing, left over, of a wrong shape or with
            NaN or Inf, another base.
    """
    if not is_local(adapter):
        try:
            return PeftModel.from_pretrained(model, str(adapter), is_trainable=is_trainable)
        except (OSError, ValueError) as error:
            raise MiloraError(
                f"adapter: got {adapter}, which is no folder here, and on the hub: {str(error).splitlines()[0]}"
            ) from error
    folder = Path(adapter).expanduser()
    check_adapter(folder)
    try:
        loaded = PeftModel.from_pretrained(model, str(folder), config=_config(folder, force), is_trainable=is_trainable)
    except MiloraError:
        raise
    except _REFUSALS as error:
        raise MiloraError(f"adapter {folder}: does not fit the model ({_first_difference(error)})") from error
    _check_names(loaded, folder)
    _check_positions(loaded, folder)
    return loaded


def _config(folder: Path, force: bool) -> PeftConfig:
    config = read_config(folder)
    if isinstance(config, SpectralConfig):
        config.any_base = force
    return config


def check_adapter(folder: Path) -> None:
    """Check a local adapter folder: config and whole, finite safetensors weights.

    Raises:
        MiloraError: what is missing or broken.
    """
    if not folder.is_dir():
        raise MiloraError(f"adapter: got {folder}, which does not exist or is no folder")
    if not (folder / CONFIG).is_file():
        raise MiloraError(f"adapter: {folder} holds no {CONFIG}")
    if not (folder / WEIGHTS).is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        why = (
            "only pickled weights, which can run code when loaded; allowed: safetensors" if pickled else f"no {WEIGHTS}"
        )
        raise MiloraError(f"adapter: {folder} holds {why}")
    check_safetensors(folder / WEIGHTS)
    for name, tensor in _tensors(folder):
        if not _NAME.fullmatch(name):
            raise MiloraError(f"adapter: {folder / WEIGHTS} holds {name[:200]!r}, allowed names of modules with dots")
        if tensor.is_complex() or (tensor.is_floating_point() and not _finite(tensor)):
            raise MiloraError(f"adapter: {folder / WEIGHTS}: {name} holds NaN or Inf, allowed finite numbers")


def _tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a local adapter by their names in the file, one at a time."""
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (safe_open is no mapping)
                yield name, file.get_tensor(name)
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise MiloraError(f"adapter: {folder / WEIGHTS} is broken ({line})") from error


def _finite(tensor: torch.Tensor) -> bool:
    # The least precise types have no arithmetic of their own.
    return bool(torch.isfinite(tensor.float() if tensor.element_size() == 1 else tensor).all())


def _check_names(model: PeftModel, folder: Path) -> None:
    wanted = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        there = set(file.keys())
    missing = sorted(wanted - there)
    extra = sorted(n for n in there - wanted if "embed" not in n and "lm_head" not in n)
    if missing or extra:
        what = f"lacks {missing[0]}" if missing else f"holds {extra[0]}, which the model has no place for"
        raise MiloraError(f"adapter: {folder / WEIGHTS} {what} ({len(missing)} missing, {len(extra)} left over)")


def _check_positions(model: PeftModel, folder: Path) -> None:
    """The positions of a scattered core come out of the file, and are looked up with."""
    for module in model.modules():
        for name, (_, _, core) in module.declared.items() if isinstance(module, SpectralLinear) else ():
            if isinstance(core, Scattered):
                try:
                    core.check(cast(Any, module.spectral_indices)[name])
                except MiloraError as error:
                    raise MiloraError(f"adapter: {folder / WEIGHTS}: {error}") from error


def _first_difference(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "size mismatch" in line), lines[0] if lines else type(error).__name__)


def load_mixture(
    model: nn.Module, adapters: Sequence[str | Path], *, force: bool = False
) -> tuple[PeftModel, Callable[[list[float]], None]]:
    """Load several saved adapters at once, all active, and a function that sets the weight of each.

    Args:
        model: the base model.
        adapters: their folders.
        force: load them also onto a base with another fingerprint.

    Raises:
        MiloraError: see `load_adapter`; an adapter that is not of this package.
    """
    names = ["default", *(f"adapter_{i}" for i in range(1, len(adapters)))]
    loaded = load_adapter(model, adapters[0], force=force)
    for name, folder in zip(names[1:], map(Path, adapters[1:]), strict=True):
        check_adapter(folder)
        loaded.add_adapter(name, _config(folder, force))
        set_peft_model_state_dict(loaded, dict(_tensors(folder)), adapter_name=name)
    if not all(isinstance(config, SpectralConfig) for config in loaded.peft_config.values()):
        raise MiloraError("adapters: got one of PEFT's own, allowed adapters of milora; milora import brings it in")
    cast(Any, loaded.base_model).set_adapter(names)
    layers: list[Any] = [m for m in loaded.modules() if isinstance(m, BaseTunerLayer)]
    scales = [dict(layer.scaling) for layer in layers]

    def set_weights(weights: list[float]) -> None:
        for layer, scale in zip(layers, scales, strict=True):
            layer.scaling.update({n: a * scale[n] for n, a in zip(names, weights, strict=True) if n in scale})

    return loaded, set_weights

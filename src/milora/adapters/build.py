"""From a recipe's `method` to a PEFT configuration: milora's own methods, PEFT's, or none for full fine-tuning.

LoRA, rsLoRA, DoRA, AdaLoRA and VeRA are PEFT's; they are not written here.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from peft import AdaLoraConfig, LoraConfig, PeftConfig, VeraConfig

from milora.adapters.changes import MADE_AGAIN
from milora.adapters.config import SpectralConfig
from milora.adapters.delta import PLAIN_STARTS
from milora.errors import MiloraError
from milora.methods import METHODS

PEFT_METHODS: dict[str, str] = {
    "lora": "W' = W + s B A,  A kaiming-uniform, B = 0 at the start, s = alpha/r   (Hu et al., arXiv 2106.09685)",
    "rslora": "LoRA with s = alpha/sqrt(r)   (Kalajdzievski, arXiv 2312.03732)",
    "dora": "W' = g (W + s B A) / ||W + s B A||_row   (Liu et al., arXiv 2402.09353)",
    "adalora": "W' = W + s P diag(lambda) Q,  rank budget falls by importance   (Zhang et al., arXiv 2303.10512)",
    "vera": "W' = W + diag(b) B diag(d) A,  A, B random, frozen, shared   (Kopiczko et al., arXiv 2310.11454)",
}
FULL = "full"


def method_names() -> list[str]:
    """Every value of a recipe's `method`."""
    return [*METHODS, *PEFT_METHODS, FULL]


def peft_config(settings: Mapping[str, Any]) -> PeftConfig | None:
    """The PEFT configuration of a method, or None for full fine-tuning.

    Args:
        settings: recipe keys: `method`, `lora_r`, `lora_alpha`, `lora_dropout`, `target_modules`, `seed`, ... and
            `method_settings`, the method's own keyword arguments, which go over what follows from the others.

    Raises:
        MiloraError: an unknown method, or a setting that the method does not have.
    """
    method = str(settings["method"])
    if method == FULL:
        return None
    if method in METHODS:
        return _spectral(method, settings)
    if method in PEFT_METHODS:
        return _of_peft(method, settings)
    near = difflib.get_close_matches(method, method_names(), n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise MiloraError(f"method: got {method!r}{hint}, allowed {', '.join(method_names())}")


def _where(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What to adapt, under the names that all PEFT configurations share."""
    names = ("target_modules", "exclude_modules", "layers_to_transform", "modules_to_save")
    given = {name: settings[name] for name in names if settings.get(name) is not None}
    return {"target_modules": "all-linear", "task_type": "CAUSAL_LM", **given}


def _spectral(method: str, settings: Mapping[str, Any]) -> SpectralConfig:
    bias = settings.get("bias", "none")
    arguments = {
        **_where(settings),
        "r": settings["lora_r"],
        "lora_alpha": settings.get("lora_alpha"),
        "lora_dropout": settings.get("lora_dropout", 0.0),
        "use_rslora": settings.get("use_rslora", False),
        "rank_pattern": settings.get("rank_pattern") or {},
        "alpha_pattern": settings.get("alpha_pattern") or {},
        "bias": "spectral_only" if bias == "lora_only" else bias,
        "components_seed": settings.get("seed", 0),
    }
    return _call(SpectralConfig, method, {"method": method, **arguments}, settings)


def _check_start(settings: Mapping[str, Any]) -> None:
    """A start that PEFT draws anew at each load, and of which a run keeps nothing, makes another adapter each time."""
    start = (settings.get("method_settings") or {}).get("init_lora_weights", True)
    if start not in PLAIN_STARTS and start not in MADE_AGAIN:
        allowed = ", ".join(repr(known) for known in (*PLAIN_STARTS, *MADE_AGAIN))
        raise MiloraError(
            f"method_settings: init_lora_weights: got {start!r}, whose start cannot be made again, allowed {allowed};"
            " method pissa starts from the principal components too"
        )


def _of_peft(method: str, settings: Mapping[str, Any]) -> PeftConfig:
    _check_start(settings)
    r, alpha, dropout = settings["lora_r"], settings.get("lora_alpha"), settings.get("lora_dropout", 0.0)
    if method == "vera":
        return _call(VeraConfig, method, {**_where(settings), "r": r, "vera_dropout": dropout}, settings)
    arguments = {
        **_where(settings),
        "lora_alpha": 2 * r if alpha is None else alpha,
        "lora_dropout": dropout,
        "bias": settings.get("bias", "none"),
    }
    if method == "adalora":
        return _call(AdaLoraConfig, method, {**arguments, "target_r": r}, settings)
    patterns = {name: settings.get(name) or {} for name in ("rank_pattern", "alpha_pattern")}
    variant = {"use_dora": method == "dora", "use_rslora": method == "rslora" or settings.get("use_rslora", False)}
    return _call(LoraConfig, method, {**arguments, **patterns, **variant, "r": r}, settings)


def _call(config_class: Any, method: str, arguments: dict[str, Any], settings: Mapping[str, Any]) -> Any:
    own = dict(settings.get("method_settings") or {})
    known = set(config_class.__dataclass_fields__)
    unknown = sorted(set(own) - known)
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise MiloraError(f"method_settings: {method} has no setting {unknown[0]!r}{hint}")
    try:
        return config_class(**{**arguments, **own})
    except MiloraError:
        raise
    except (TypeError, ValueError) as error:
        raise MiloraError(f"method {method}: {str(error).splitlines()[0]}") from error

"""The settings that only some methods have: the names that `method_settings` may hold.

Names are those of the method's PEFT configuration. What a recipe key already says (rank, alpha, dropout,
what is adapted) is not among them.
"""

from typing import Any

_WHERE = ("layers_pattern", "fan_in_fan_out")
_BUDGET = ("target_r", "init_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight")
_LORA = (*_WHERE, "init_lora_weights", "loftq_config", "eva_config", "corda_config")

# Methods of PEFT, and full fine-tuning, which has none.
PEFT_SETTINGS: dict[str, tuple[str, ...]] = {
    "lora": _LORA,
    "rslora": _LORA,
    "dora": _LORA,
    "adalora": (*_WHERE, *_BUDGET),
    "vera": (*_WHERE, "projection_prng_key", "save_projection", "d_initial"),
    "full": (),
}
# Of every method on singular vectors: what it shares with its kin, what it declares for itself in `Method.own`.
_SPECTRAL = (*_WHERE, "magnitude", "components", "components_seed", "save_bases", "decompose_from")


def default_alpha(method: Any, lora_r: Any, rank_pattern: Any) -> float | None:
    """`lora_alpha` where a recipe does not say it: r for spectral methods, 2r for LoRA and its kin.

    None for SVF, SVFT, VeRA and full fine-tuning, which have none; for a spectral method with a `rank_pattern`, where
    each layer takes its own r; and for values that are no method and rank.
    """
    from milora.methods import METHODS

    if not isinstance(method, str) or type(lora_r) is not int or lora_r < 1:
        return None
    if method in METHODS:
        return float(lora_r) if METHODS[method].ranked and not rank_pattern else None
    return 2.0 * lora_r if method in ("lora", "rslora", "dora", "adalora") else None


def known_methods() -> dict[str, tuple[str, ...]]:
    """Every method with the names that its `method_settings` may hold."""
    # torch is imported only where a method is looked at.
    from milora.methods import METHODS

    dropping = {"svf": ("drop_base",)}
    spectral = {name: (*_SPECTRAL, *sorted(m.own), *dropping.get(name, ())) for name, m in METHODS.items()}
    return spectral | PEFT_SETTINGS

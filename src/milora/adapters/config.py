"""`SpectralConfig`: the PEFT configuration of every method that milora writes itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig

from milora.adapters.registration import add_peft_type
from milora.errors import MiloraError
from milora.methods import get_method
from milora.models.targets import matching_pattern

_BIAS = ("none", "all", "spectral_only")
_COMPONENTS = ("random", "middle")


@dataclass
class SpectralConfig(PeftConfig):
    """Configuration of a method on singular vectors, W' = W + s (L R - L0 R0).

    Args:
        method: a name in `milora.methods.METHODS`: "milora", "pissa", "random_components", "mica".
        r: rank, 1 to min(out, in) of every targeted weight.
        lora_alpha: s = lora_alpha / r, or lora_alpha / sqrt(r) with `use_rslora`; None means r, the papers' choice.
        lora_dropout: dropout on the input of the bracket, in [0, 1). The start is exact with any dropout.
        use_rslora: s = lora_alpha / sqrt(r).
        target_modules, exclude_modules, layers_to_transform, layers_pattern, modules_to_save: as in PEFT's LoraConfig.
        rank_pattern, alpha_pattern: as there; a pattern that matches nothing is an error.
        fan_in_fan_out: accepted for PEFT's sake; whether a weight is stored (in, out) is read off its layer.
        bias: "none", "all" or "spectral_only".
        components: for random_components, "random" or "middle".
        components_seed: for random_components, the seed of the draw; each layer draws its own from (seed, name).
        base_fingerprint, base_precision: of the targeted base weights; filled in when the adapter is made.

    Raises:
        MiloraError: a value that is not allowed, with what is.
    """

    method: str = field(default="milora", metadata={"help": "Which method of the family."})
    r: int = field(default=32, metadata={"help": "Rank."})
    lora_alpha: float | None = field(default=None, metadata={"help": "Numerator of the scale; None is r."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout on the input of the bracket."})
    use_rslora: bool = field(default=False, metadata={"help": "Scale by 1/sqrt(r) instead of 1/r."})
    target_modules: list[str] | str | None = field(default=None, metadata={"help": "What to adapt."})
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "What not to adapt."})
    layers_to_transform: list[int] | int | None = field(default=None, metadata={"help": "Layer indices."})
    layers_pattern: list[str] | str | None = field(default=None, metadata={"help": "Name of the layer list."})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "Modules trained in full."})
    rank_pattern: dict[str, int] = field(default_factory=dict[str, int], metadata={"help": "Ranks by name."})
    alpha_pattern: dict[str, float] = field(default_factory=dict[str, float], metadata={"help": "Alphas by name."})
    fan_in_fan_out: bool = field(default=False, metadata={"help": "Weights are stored (in, out)."})
    bias: str = field(default="none", metadata={"help": "Which biases train."})
    components: str = field(default="random", metadata={"help": "For random_components: random or middle."})
    components_seed: int = field(default=0, metadata={"help": "For random_components: seed of the draw."})
    base_fingerprint: str | None = field(default=None, metadata={"help": "SHA-256 of the targeted weights."})
    base_precision: str | None = field(default=None, metadata={"help": "Precision class of the fingerprint."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = add_peft_type()
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            setattr(self, name, set(value) if isinstance(value, list) else value)
        # A configuration that arrives with a fingerprint was read from a saved adapter: its factors come from the
        # file, so that making the layers decomposes nothing, and its base must be the one it was made on.
        self.saved = self.base_fingerprint is not None
        self.any_base = False  # set by `load_adapter(force=True)`
        self._check_values()

    def _check_values(self) -> None:
        get_method(self.method)
        problems = [
            *_refuse(not _is_rank(self.r), "r", self.r, "a whole number from 1 on"),
            *_refuse(not _is_alpha(self.lora_alpha), "lora_alpha", self.lora_alpha, "a number above 0"),
            *_refuse(not 0.0 <= self.lora_dropout < 1.0, "lora_dropout", self.lora_dropout, "0 to less than 1"),
            *_refuse(self.bias not in _BIAS, "bias", self.bias, ", ".join(_BIAS)),
            *_refuse(self.components not in _COMPONENTS, "components", self.components, ", ".join(_COMPONENTS)),
            *_refuse(
                self.components != "random" and self.method != "random_components",
                "components",
                f"{self.components} with method {self.method}",
                "only with method random_components",
            ),
            *_refuse(
                isinstance(self.target_modules, str) and self.layers_to_transform is not None,
                "layers_to_transform",
                f"with target_modules={self.target_modules!r}",
                "only with a list of target_modules",
            ),
            *_refuse(
                self.layers_pattern is not None and self.layers_to_transform is None,
                "layers_pattern",
                self.layers_pattern,
                "only with layers_to_transform",
            ),
            *(_pattern_problem("rank_pattern", n, r) for n, r in self.rank_pattern.items() if not _is_rank(r)),
            *(_pattern_problem("alpha_pattern", n, a) for n, a in self.alpha_pattern.items() if not _is_alpha(a)),
        ]
        if problems:
            raise MiloraError("; ".join(problems))

    def rank(self, module: str) -> int:
        """The rank of a module, by `rank_pattern` where one matches its name."""
        return self.rank_pattern.get(matching_pattern(self.rank_pattern, module) or "", self.r)

    def scale(self, module: str) -> float:
        """The scale s of a module, by `alpha_pattern` where one matches its name."""
        r = self.rank(module)
        alpha = self.alpha_pattern.get(matching_pattern(self.alpha_pattern, module) or "", self.lora_alpha)
        alpha = r if alpha is None else alpha
        return alpha / r**0.5 if self.use_rslora else alpha / r

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON types; sets as sorted lists, so that equal configurations give equal files."""
        fields = super().to_dict()
        return {k: sorted(v) if isinstance(v, set) else v for k, v in fields.items()}  # pyright: ignore


def _refuse(wrong: bool, name: str, got: object, allowed: str) -> list[str]:
    return [f"{name}: got {got!r}, allowed {allowed}"] if wrong else []


def _pattern_problem(name: str, pattern: str, got: object) -> str:
    allowed = "a whole number from 1 on" if name == "rank_pattern" else "a number above 0"
    return f"{name}[{pattern!r}]: got {got!r}, allowed {allowed}"


def _is_rank(r: object) -> bool:
    return isinstance(r, int) and not isinstance(r, bool) and r >= 1


def _is_alpha(alpha: object) -> bool:
    return alpha is None or (isinstance(alpha, int | float) and 0 < alpha < float("inf"))

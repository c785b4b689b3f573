"""`SpectralConfig`: the PEFT configuration of every method that milora writes itself."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from peft import PeftConfig

from milora.adapters.registration import add_peft_type
from milora.errors import MiloraError
from milora.methods import NAMED, Choice, Method, get_method
from milora.methods.svft import PATTERNS
from milora.models.targets import matching_pattern

_BIAS = ("none", "all", "spectral_only")
_SOURCES = ("auto", "high_precision", "dequantised")


@dataclass
class SpectralConfig(PeftConfig):
    """Configuration of a method on singular vectors, W' = W + s (L C R - L0 C0 R0).

    Args:
        method: a name in `milora.methods.METHODS`: "milora", "pissa", "random_components", "mica", "lora_xs", "svf",
            "svft".
        r: rank, 1 to min(out, in) of every targeted weight. "svf" and "svft" take all triplets and s = 1 instead.
        lora_alpha: s = lora_alpha / r, or lora_alpha / sqrt(r) with `use_rslora`; None means r, the papers' choice.
        lora_dropout: dropout on the input of the bracket, in [0, 1). The start is exact with any dropout.
        use_rslora: s = lora_alpha / sqrt(r).
        target_modules, exclude_modules, layers_to_transform, layers_pattern, modules_to_save: as in PEFT's LoraConfig.
        target_parameters: names of fused experts' weights (3-D parameters), each expert's matrix adapted on its own.
        rank_pattern, alpha_pattern: as there; a pattern that matches nothing is an error.
        fan_in_fan_out: accepted for PEFT's sake; whether a weight is stored (in, out) is read off its layer.
        bias: "none", "all" or "spectral_only".
        magnitude: DoRA's magnitude g, one number an output, trained over the method.
        components: which triplets: None is the method's own; for "mica" and "lora_xs" also "top", "bottom", "middle",
            "random" or r indices (0 is the largest singular value); for "random_components" "random", "middle" or
            indices.
        components_seed: the seed of what is drawn; each layer draws its own from (seed, name).
        pattern: for svft, "plain", "banded", "random" or "top_k".
        d: for svft, off-diagonals on each side; "random" and "top_k" take as many positions as that band has.
        entries: for svft, how many positions "random" and "top_k" take, instead of `d`.
        svd_rank: for svf and svft, only that many of the largest triplets train; the rest of the weight stays.
        as_published: for lora_xs, svf and svft, what the authors' code does; the start is then not the base.
        save_bases: whether a saved adapter holds L0 and R0. None: not for svf, whose U and V are as large as two models
            and are decomposed again, or read from the store, when it is loaded; else yes.
        drop_base: for svf, the base weight is dropped and stands as U S V^T: less memory, exact only to rounding.
        embedding_modules: which of the targeted modules are embeddings; filled in when the adapter is made.
        decompose_from: on a quantised base, "high_precision" decomposes the weights of the checkpoint that it was
            quantised from, "dequantised" the quantised ones; "auto" takes the former where they can be read. A saved
            adapter says which it was.
        base_fingerprint, base_precision: of the targeted base weights; filled in when the adapter is made.
        base_dtype, base_values: where L0 and R0 are not saved, the dtype of the weights that they were made of, and the
            fingerprint of their values as they are; filled in when the adapter is made.

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
    target_parameters: list[str] | None = field(default=None, metadata={"help": "Fused experts' weights to adapt."})
    rank_pattern: dict[str, int] = field(default_factory=dict[str, int], metadata={"help": "Ranks by name."})
    alpha_pattern: dict[str, float] = field(default_factory=dict[str, float], metadata={"help": "Alphas by name."})
    fan_in_fan_out: bool = field(default=False, metadata={"help": "Weights are stored (in, out)."})
    bias: str = field(default="none", metadata={"help": "Which biases train."})
    magnitude: bool = field(default=False, metadata={"help": "DoRA's magnitude over the method."})
    components: str | list[int] | None = field(default=None, metadata={"help": "Which triplets."})
    components_seed: int = field(default=0, metadata={"help": "Seed of what is drawn."})
    pattern: str = field(default="plain", metadata={"help": "For svft: plain, banded, random, top_k."})
    d: int = field(default=0, metadata={"help": "For svft: off-diagonals on each side."})
    entries: int | None = field(default=None, metadata={"help": "For svft: how many positions."})
    svd_rank: int | None = field(default=None, metadata={"help": "For svf, svft: only so many triplets."})
    as_published: bool = field(default=False, metadata={"help": "For lora_xs, svf, svft: as the authors' code."})
    save_bases: bool | None = field(default=None, metadata={"help": "Save L0 and R0 with the adapter."})
    drop_base: bool = field(default=False, metadata={"help": "For svf: keep U S V^T in place of W."})
    embedding_modules: list[str] | None = field(default=None, metadata={"help": "The targets that are embeddings."})
    decompose_from: str = field(default="auto", metadata={"help": "What is decomposed on a quantised base."})
    base_fingerprint: str | None = field(default=None, metadata={"help": "SHA-256 of the targeted weights."})
    base_precision: str | None = field(default=None, metadata={"help": "Precision class of the fingerprint."})
    base_dtype: str | None = field(default=None, metadata={"help": "What unsaved bases were made of."})
    base_values: str | None = field(default=None, metadata={"help": "SHA-256 of those weights as they are."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = add_peft_type()
        if self.target_modules is None and self.target_parameters:
            self.target_modules = []
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            setattr(self, name, set(value) if isinstance(value, list) else value)
        # A configuration that arrives with a fingerprint was read from a saved adapter: its factors come from the
        # file, so that making the layers decomposes nothing, and its base must be the one it was made on.
        self.saved = self.base_fingerprint is not None
        self.any_base = False  # set by `load_adapter(force=True)`
        self._check_values()

    def _check_values(self) -> None:
        method = get_method(self.method)
        problems = [
            *_refuse(not _is_rank(self.r), "r", self.r, "a whole number from 1 on"),
            *_refuse(not _is_alpha(self.lora_alpha), "lora_alpha", self.lora_alpha, "a number above 0"),
            *_refuse(not 0.0 <= self.lora_dropout < 1.0, "lora_dropout", self.lora_dropout, "0 to less than 1"),
            *_refuse(self.bias not in _BIAS, "bias", self.bias, ", ".join(_BIAS)),
            *_refuse(self.decompose_from not in _SOURCES, "decompose_from", self.decompose_from, ", ".join(_SOURCES)),
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
            *self._of_the_method(method),
            *self._of_the_components(method),
        ]
        if problems:
            raise MiloraError("; ".join(problems))

    def _of_the_method(self, method: Method) -> list[str]:
        """Settings that only some methods have, and their values."""
        given = {n: getattr(self, n) for n in ("pattern", "d", "entries", "svd_rank", "as_published")}
        defaults = {n: self.__dataclass_fields__[n].default for n in given}
        drawn = self.pattern in ("random", "top_k")
        unranked = not method.ranked and (self.lora_alpha is not None or self.use_rslora)
        return [
            *(f"{n}: got {v!r} with method {self.method}, which has no such setting"
              for n, v in given.items() if v != defaults[n] and n not in method.own),
            *_refuse(unranked, "lora_alpha", f"{self.lora_alpha} with method {self.method}", "none: its scale is 1"),
            *_refuse(self.drop_base and (self.method != "svf" or self.magnitude or self.svd_rank is not None),
                     "drop_base", True, "only for svf over all triplets, without magnitude"),
            *_refuse(self.pattern not in PATTERNS, "pattern", self.pattern, ", ".join(PATTERNS)),
            *_refuse(not _is_count(self.d, 0), "d", self.d, "a whole number from 0 on"),
            *_refuse(self.d != 0 and self.pattern == "plain", "d", self.d, "only with pattern banded, random or top_k"),
            *_refuse(self.entries is not None and not (_is_rank(self.entries) and drawn and self.d == 0),
                     "entries", self.entries, "a whole number from 1 on, with pattern random or top_k and without d"),
            *_refuse(self.svd_rank is not None and not _is_rank(self.svd_rank),
                     "svd_rank", self.svd_rank, "a whole number from 1 on"),
        ]  # fmt: skip

    def _of_the_components(self, method: Method) -> list[str]:
        if self.components is None:
            return []
        allowed = ", ".join(method.components) or "none: it takes all"
        if isinstance(self.components, str):
            other = {"top": "pissa", "bottom": "milora"}.get(self.components) if "L" in method.trains else None
            hint = f" (method {other!r} is that)" if other not in (None, self.method) else ""
            known = self.components in method.components and self.components in NAMED
            return _refuse(not known, "components", self.components, f"{allowed} with method {self.method}{hint}")
        indices: list[Any] = list(self.components)
        rising = all(_is_count(i, 0) for i in indices) and all(a < b for a, b in pairwise(indices))
        return [
            *_refuse("indices" not in method.components, "components", indices[:8], f"{allowed} with {self.method}"),
            *_refuse(not rising, "components", indices[:8], "rising whole numbers from 0 on"),
            *_refuse(len(indices) != self.r or bool(self.rank_pattern), "components", f"{len(indices)} indices",
                     f"r = {self.r} of them, and no rank_pattern"),
        ]  # fmt: skip

    def choice(self, module: str) -> Choice:
        """What a method may look at, for one module; the generator's seed is drawn from (components_seed, module)."""
        seed = hashlib.sha256(f"{self.components_seed}:{module}".encode()).digest()
        return Choice(
            r=self.rank(module),
            scale=self.scale(module),
            components=tuple(self.components) if isinstance(self.components, list) else self.components,
            generator=torch.Generator().manual_seed(int.from_bytes(seed[:8], "little") >> 1),
            pattern=self.pattern,
            d=self.d,
            entries=self.entries,
            svd_rank=self.svd_rank,
            as_published=self.as_published,
        )

    @property
    def keeps_bases(self) -> bool:
        """Whether a saved adapter holds L0 and R0."""
        return self.method != "svf" if self.save_bases is None else self.save_bases

    def rank(self, module: str) -> int:
        """The rank of a module, by `rank_pattern` where one matches its name."""
        return self.rank_pattern.get(matching_pattern(self.rank_pattern, module) or "", self.r)

    def scale(self, module: str) -> float:
        """The scale s of a module, by `alpha_pattern` where one matches its name; 1 where a method has no rank."""
        if not get_method(self.method).ranked:
            return 1.0
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


def _is_count(n: object, least: int) -> bool:
    return isinstance(n, int) and not isinstance(n, bool) and n >= least


def _is_rank(r: object) -> bool:
    return _is_count(r, 1)


def _is_alpha(alpha: object) -> bool:
    return alpha is None or (isinstance(alpha, int | float) and 0 < alpha < float("inf"))

"""The change of one weight, read from a saved adapter module by module: what every way out of milora starts from.

    W' = W + s (P_1 Q_1 + P_2 Q_2 + ...)          P_i (out, q_i),  Q_i (q_i, in)

For two factors that train it is s (L0 dR + dL (dR + R0)), in the very order in which the layer adds it, so that a
weight merged from here has the layer's own bits; where only R trains it is s L0 dR, where the core trains s L0 (C R0);
for LoRA it is s B A. As one product it is B A with B = s [P_1, P_2] and A = [Q_1; Q_2]: a LoRA with the scale inside B.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig
from safetensors import safe_open
from torch import Tensor

from milora.adapters.attach import WEIGHTS, check_adapter
from milora.adapters.config import SpectralConfig
from milora.adapters.expert_export import Stacks, read_stacks, stacked_factor
from milora.adapters.registration import PREFIX
from milora.adapters.saved_bases import SavedBases
from milora.adapters.saved_config import CONFIG, read_config
from milora.errors import MiloraError
from milora.methods import Bracket, get_method
from milora.methods.core import Scattered
from milora.models.targets import matching_pattern

INSIDE = "base_model.model."  # what PEFT puts before a module's name
# Starts that leave the base weights alone, so that the saved tensors are the whole change.
PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")


@dataclass(frozen=True)
class Delta:
    """The change of one weight.

    Attributes:
        terms: pairs P_i (out, q_i) and Q_i (q_i, in), float32 or float64.
        scale: s.
    """

    terms: tuple[tuple[Tensor, Tensor], ...]
    scale: float

    @property
    def P(self) -> Tensor:  # (out, rank)
        """The left factor of the whole change, with the scale inside."""
        return self.scale * torch.cat([P for P, _ in self.terms], dim=1)

    @property
    def Q(self) -> Tensor:  # (rank, in)
        """The right factor of the whole change."""
        return torch.cat([Q for _, Q in self.terms])

    @property
    def rank(self) -> int:
        """Columns of P: the rank of a LoRA that holds the change exactly."""
        return sum(Q.shape[0] for _, Q in self.terms)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.terms[0][0].shape[0], self.terms[0][1].shape[1]

    def dense(self) -> Tensor:  # (out, in)
        """The change as one matrix, in the factors' dtype, to the layer's bits."""
        P, Q = self.terms[0]
        delta = P @ Q
        for P, Q in self.terms[1:]:
            delta += P @ Q
        delta *= self.scale
        return delta

    def added_to(self, W: Tensor) -> Tensor:  # (out, in)
        """W + delta: summed in float32 (float64 for a float64 weight), cast once to W's dtype."""
        return (W.to(torch.promote_types(W.dtype, torch.float32)) + self.dense()).to(W.dtype)


def spectral_delta(parts: Mapping[str, Tensor], config: SpectralConfig, module: str) -> Delta:
    """The change that the factors of one module of a spectral adapter make.

    Args:
        parts: the module's tensors by their names without the prefix: L0, R0, dL, dR, C, indices, as the method has
            them.
        config: the adapter's configuration.
        module: the module's name.

    Raises:
        MiloraError: a factor is missing, left over or of a wrong shape; a magnitude, which is no product of factors.
    """
    if config.magnitude:
        raise MiloraError("has a magnitude, whose change is no product of factors; allowed with it: --to merged")
    method, choice = get_method(config.method), config.choice(module)
    scattered = "C" in method.trains and choice.pattern in ("random", "top_k")
    wanted = {"L0", *("C" if f == "C" else f"d{f}" for f in method.trains)}
    wanted |= ({"R0"} if method.trains & {"L", "C"} else set()) | ({"indices"} if scattered else set())
    if set(parts) != wanted:
        raise MiloraError(f"got the factors {', '.join(sorted(parts))}, allowed {', '.join(sorted(wanted))}")
    L0, R0 = parts["L0"], parts.get("R0")
    _check_pair(L0, parts["dR"] if R0 is None else R0)
    for changed, start in (("dL", L0), ("dR", R0)):
        if changed in parts and start is not None and parts[changed].shape != start.shape:
            raise MiloraError(f"{changed} {tuple(parts[changed].shape)}, allowed {tuple(start.shape)}")
    q, C = L0.shape[1], parts.get("C")
    core = method.core(q, choice)
    if core is None or C is None or R0 is None:
        bracket = Bracket(choice.scale, L0, R0, parts.get("dL"), parts.get("dR"))
        return Delta(bracket.terms(), bracket.scale)
    if C.shape != (method.core_numbers(q, choice),):
        raise MiloraError(f"C {tuple(C.shape)}, allowed ({method.core_numbers(q, choice)},)")
    if isinstance(core, Scattered):
        core.check(parts["indices"])
    bracket = Bracket(choice.scale, L0, R0, core=core, c=method.values(C, R0, choice), indices=parts.get("indices"))
    return Delta(bracket.terms(), bracket.scale)


def lora_delta(parts: Mapping[str, Tensor], scale: float) -> Delta:
    """The change s B A of one module of a LoRA adapter, from its tensors lora_B and lora_A."""
    if set(parts) != {"lora_A", "lora_B"}:
        raise MiloraError(f"got {', '.join(sorted(parts))}, allowed lora_A and lora_B")
    _check_pair(parts["lora_B"], parts["lora_A"])
    return Delta(((parts["lora_B"], parts["lora_A"]),), scale)


def _check_pair(P: Tensor, Q: Tensor) -> None:
    if P.ndim != 2 or Q.ndim != 2 or P.shape[1] != Q.shape[0]:
        raise MiloraError(f"factors of shapes {tuple(P.shape)} and {tuple(Q.shape)}, allowed (out, r) and (r, in)")


class AdapterFile:
    """A saved adapter whose tensors are read when they are asked for, a module at a time.

    Args:
        folder: where it lies.
        config: what its file is to be read as; None reads the configuration that lies there.
        base: the base model, of which L0 and R0 are made where the file does not hold them; None is the one that the
            configuration names.

    Attributes:
        folder, config: the same.
        modules: the adapted modules by the model's own names, in sorted order.
        fused: the names of adapted parameters that hold many experts' weights; they are none of the modules.
        embeddings: those of the modules that are embeddings.
        others: names in the file of what is no factor: trained biases, modules_to_save.

    Raises:
        MiloraError: no adapter there, a broken file, a tensor whose place is not known, or a kind of adapter whose
            change is no sum of two factors' products (allowed: spectral adapters, plain LoRA).
    """

    def __init__(self, folder: str | Path, config: PeftConfig | None = None, base: str | Path | None = None) -> None:
        self.folder = Path(folder).expanduser()
        check_adapter(self.folder)
        self.config = read_config(self.folder) if config is None else config
        split, self._delta = _kind(self.config, self.folder)
        parts: dict[str, dict[str, str]] = {}
        self._stacks: dict[tuple[str, str], dict[str, str]] = {}
        self.others: list[str] = []
        with safe_open(self.folder / WEIGHTS, framework="pt") as file:
            for key in sorted(file.keys()):
                module, part = split(key)
                stacked = stacked_factor(part)
                if stacked:
                    self._stacks.setdefault((module.removeprefix(INSIDE), stacked[1]), {})[stacked[0]] = key
                elif part:
                    parts.setdefault(module.removeprefix(INSIDE), {})[part] = key
                elif not key.endswith(".base_layer.weight"):  # PEFT saves an adapted embedding's or head's along
                    self.others.append(key)
        unknown = [key for key in self.others if not _has_place(key, self.config)]
        if unknown:
            raise MiloraError(f"adapter: {self.folder / WEIGHTS} holds {unknown[0]}, which no setting of it asks for")
        if not parts and not self._stacks:
            raise MiloraError(f"adapter: {self.folder / WEIGHTS} holds no factors")
        self._keys = parts
        self.modules = list(parts)
        self._bases = SavedBases(self.config, self.modules, base)
        self.fused = [".".join(where) for where in self._stacks]
        named = self.config.embedding_modules if isinstance(self.config, SpectralConfig) else None
        self.embeddings = {module for module in self.modules if module in (named or ())}

    def delta(self, module: str) -> Delta:
        """The change of one module, its factors in float32 (float64 where they are stored so).

        Raises:
            MiloraError: the module's factors do not belong together.
        """
        try:
            return self._delta({part: wide(tensor) for part, tensor in self.parts(module).items()}, module)
        except MiloraError as error:
            raise MiloraError(f"adapter: {self.folder / WEIGHTS}: {module}: {error}") from error

    def stacks(self) -> Stacks:
        """The factors of fused experts, by module and parameter, in float32 (float64 where they are stored so).

        Raises:
            MiloraError: they do not belong together.
        """
        return read_stacks(self._stacks, lambda key: wide(self.tensor(key)), f"adapter: {self.folder / WEIGHTS}")

    def refuse_fused(self, what: str) -> None:
        """Refuse what knows only single matrices."""
        if self.fused:
            raise MiloraError(f"{what}: {self.fused[0]} holds the weights of many experts, allowed linear layers")

    def tensor(self, key: str) -> Tensor:
        """One tensor by its name in the file, as it is stored."""
        with safe_open(self.folder / WEIGHTS, framework="pt") as file:
            return file.get_tensor(key)

    def parts(self, module: str, *, made: bool = True) -> dict[str, Tensor]:
        """The tensors of one module by their short names: as they are stored, or (`made`) made of the base again."""
        stored = {part: self.tensor(key) for part, key in self._keys[module].items()}
        return self._bases.of(module) | stored if made else stored

    def other(self) -> dict[str, str]:
        """What is no factor: the model's own parameter names, and the names in the file."""
        return {k.removeprefix(INSIDE).replace(".base_layer.", "."): k for k in self.others}


def deltas(folder: str | Path) -> Iterator[tuple[str, Delta]]:
    """The changes of a saved adapter, module by module; no more than one is read at a time."""
    file = AdapterFile(folder)
    file.refuse_fused("deltas")
    for module in file.modules:
        yield module, file.delta(module)


_Split = Callable[[str], tuple[str, str]]


def _kind(config: PeftConfig, folder: Path) -> tuple[_Split, Callable[[Mapping[str, Tensor], str], Delta]]:
    """How the names of a file are cut, and what the factors of a module make."""
    if isinstance(config, SpectralConfig):
        return _split_spectral, lambda parts, module: spectral_delta(parts, config, module)
    if type(config) is not LoraConfig:
        got = f"{type(config).__name__}, allowed milora's own or a plain LoRA; milora merge takes what PEFT merges"
        raise MiloraError(f"adapter: {folder} holds a {got}")
    if refusal := not_plain(config):
        raise MiloraError(f"adapter: {folder / CONFIG}: {refusal}")
    return _split_lora, lambda parts, module: lora_delta(parts, lora_scale(config, module))


def not_plain(config: LoraConfig) -> str:
    """Why a LoRA adapter's change is not s B A on the untouched base, or nothing."""
    start = config.init_lora_weights
    if start not in PLAIN_STARTS:
        return (
            f"init_lora_weights is {start!r}, which rewrites the base weights, so that its tensors alone are not its"
            " change; milora import brings PiSSA in, PEFT's path_initial_model_for_weight_conversion makes it a LoRA"
        )
    for name in ("use_dora", "lora_bias", "use_qalora", "alora_invocation_tokens", "layer_replication",
                 "target_parameters", "trainable_token_indices", "use_bdlora", "arrow_config", "kasa_config",
                 "velora_config", "monteclora_config", "megatron_config"):  # fmt: skip
        if getattr(config, name, None):
            return f"{name} is set, allowed a plain LoRA"
    return ""


def lora_scale(config: LoraConfig, module: str) -> float:
    """The scale of a module in PEFT: lora_alpha / r, or over sqrt(r) with use_rslora; patterns by name."""
    ranks, alphas = config.rank_pattern or {}, config.alpha_pattern or {}
    r = ranks.get(matching_pattern(ranks, module) or "", config.r)
    alpha = alphas.get(matching_pattern(alphas, module) or "", config.lora_alpha)
    if isinstance(r, bool) or not isinstance(r, int) or not 1 <= r < 1 << 31 or not isinstance(alpha, int | float):
        raise MiloraError(f"r, lora_alpha: got {r!r:.60}, {alpha!r:.60}, allowed a whole number from 1 on and a number")
    return alpha / r**0.5 if config.use_rslora else alpha / r


def _has_place(key: str, config: Any) -> bool:
    """Whether a tensor that is no factor is one that PEFT saves: a bias, modules_to_save, an embedding or a head."""
    if key.endswith(".bias") and config.bias != "none":
        return True
    inside = f".{key.removeprefix(INSIDE)}"
    saved = any(f".{name}." in inside for name in config.modules_to_save or ())
    return saved or (inside.endswith(".weight") and ("embed" in inside or "lm_head" in inside))


def _split_spectral(key: str) -> tuple[str, str]:
    module, dot, part = key.rpartition(f".{PREFIX}")
    return (module, part) if dot else (key, "")


def _split_lora(key: str) -> tuple[str, str]:
    for part in ("lora_A", "lora_B"):
        if key.endswith(f".{part}.weight"):
            return key.removesuffix(f".{part}.weight"), part
    if ".lora_" in key:
        raise MiloraError(f"adapter: {key}: allowed lora_A.weight and lora_B.weight of linear layers")
    return key, ""


def wide(tensor: Tensor) -> Tensor:
    """A factor in float32, in float64 where it is stored so; positions as they are."""
    return tensor if tensor.dtype == torch.float64 or not tensor.is_floating_point() else tensor.to(torch.float32)

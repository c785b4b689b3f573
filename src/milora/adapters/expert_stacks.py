"""Experts' weights that a model keeps fused, all of a layer's in one 3-D parameter: found, and read one by one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from milora.adapters.config import SpectralConfig
from milora.adapters.experts import SpectralExperts
from milora.errors import MiloraError
from milora.methods import Factors, get_method
from milora.models.targets import ALL_LINEAR

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True)
class ExpertStack:
    """One fused parameter.

    Attributes:
        path: of the module that holds it.
        parameter: its name there.
        W: (experts, out, in), a view of the weight without adapters.
        wanted: the name in `target_parameters` that means it.
    """

    path: str
    parameter: str
    W: Tensor
    wanted: str

    @property
    def key(self) -> str:
        """The parameter's name in the model."""
        return f"{self.path}.{self.parameter}"

    def matrices(self) -> dict[str, nn.Linear]:
        """Each expert's matrix as a linear layer on the same memory, named as checkpoints name them."""
        return {f"{self.path}.{e}.{self.parameter}": _linear(self.W[e]) for e in range(len(self.W))}


def _linear(W: Tensor) -> nn.Linear:  # (out, in)
    layer = nn.Linear(W.shape[1], W.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(W, requires_grad=False)
    return layer


def expert_stacks(model: nn.Module, config: SpectralConfig) -> list[ExpertStack]:
    """The parameters that `target_parameters` names, matched as PEFT does: whole, or after a dot.

    Raises:
        MiloraError: a name that matches nothing, a parameter that is no stack of matrices, a method or a setting that
            does not work on a weight as a whole.
    """
    wanted = list(config.target_parameters or [])
    stacks = [
        _stack(path, module, name, mine[0])
        for path, module in _holders(model)
        for name, _ in _base(module).named_parameters(recurse=False)
        if (mine := [w for w in wanted if f".{path}.{name}".endswith(f".{w}")])
    ]
    for name in wanted:
        if not any(f".{stack.key}".endswith(f".{name}") for stack in stacks):
            fused = ", ".join(sorted({key.rsplit(".", 1)[-1] for key in fused_experts(model)})) or "none in this model"
            raise MiloraError(f"target_parameters: {name!r} matches no parameter, allowed fused experts ({fused})")
    if stacks:
        _check_settings(config)
    return stacks


def expert_matrices(model: nn.Module, config: SpectralConfig) -> dict[str, nn.Linear]:
    """All experts' matrices that are to be adapted, by name; see `expert_stacks` for errors."""
    found: dict[str, nn.Linear] = {}
    for stack in expert_stacks(model, config):
        for name, matrix in stack.matrices().items():
            if (config.rank(name), config.scale(name)) != (config.rank(stack.key), config.scale(stack.key)):
                raise MiloraError(f"rank_pattern, alpha_pattern: got another for {name}, allowed one for {stack.key}")
            found[name] = matrix
    return found


def adapt_stacks(
    model: nn.Module,
    config: SpectralConfig,
    adapter_name: str,
    factors: Callable[[nn.Module, SpectralConfig, str], Factors | None],
) -> list[str]:
    """Put `SpectralExperts` in the place of the modules that hold the stacks.

    Args:
        model: the base model.
        config: the adapter's configuration.
        adapter_name: its name.
        factors: gives those of an expert's matrix by its name, or None where they are not to be computed.

    Returns:
        The names of the adapted parameters.
    """
    stacks = expert_stacks(model, config)
    # In the order of their modules, which decides where PEFT keeps each of them; an export has only this to go by.
    config.target_parameters = list(dict.fromkeys(stack.wanted for stack in stacks))
    for stack in stacks:
        layer = model.get_submodule(stack.path)
        if not isinstance(layer, SpectralExperts):
            layer = SpectralExperts(layer)
            parent, _, name = stack.path.rpartition(".")
            setattr(model.get_submodule(parent), name, layer)
        given = [factors(matrix, config, name) for name, matrix in stack.matrices().items()]
        layer.update_parameter(stack.parameter, adapter_name, config, stack.key, given)
    return [stack.key for stack in stacks]


def _stack(path: str, module: nn.Module, name: str, wanted: str) -> ExpertStack:
    base = _base(module)
    weight = module.unmerged(name) if isinstance(module, SpectralExperts) else cast(Tensor, getattr(base, name)).data
    problem = None
    if not path:
        problem = "stands in the model itself, allowed in a module of it"
    elif weight.ndim != 3:
        problem = f"has {weight.ndim} dimensions, allowed 3 (experts, out, in); a linear layer goes into target_modules"
    elif weight.dtype not in _DTYPES:
        problem = f"is {weight.dtype}, allowed float32, bfloat16, float16, float64"
    elif not isinstance(getattr(base, "is_transposed", None), bool):
        problem = f"is in a {type(base).__name__}, which does not say whether it keeps (out, in) or (in, out)"
    if problem:
        raise MiloraError(f"target_parameters: {path}.{name} {problem}")
    return ExpertStack(path, name, weight.mT if base.is_transposed else weight, wanted)


def _check_settings(config: SpectralConfig) -> None:
    more = get_method(config.method).trains - {"L", "R"}
    if more or config.magnitude or not config.keeps_bases:
        what = f"method {config.method}" if more else "magnitude" if config.magnitude else "save_bases=False"
        raise MiloraError(
            f"target_parameters: got {what}, allowed methods that train L and R, saved whole, no magnitude"
        )
    if config.lora_dropout:
        raise MiloraError(f"lora_dropout: got {config.lora_dropout} with target_parameters, allowed 0")


def warn_of_frozen_experts(model: nn.Module, config: SpectralConfig) -> None:
    """`all-linear` means linear modules; say so where a model's experts are none."""
    if config.target_modules == ALL_LINEAR and not config.target_parameters:
        names = sorted({key.rsplit(".", 1)[-1] for key in fused_experts(model)})
        if names:
            warnings.warn(
                f"target_modules='all-linear': the experts' weights {', '.join(names)} are fused (3-D parameters, no"
                f" linear modules) and stay frozen; target_parameters={names} adapts them",
                stacklevel=2,
            )


def fused_experts(model: nn.Module) -> Iterable[str]:
    """The names of 3-D parameters of experts."""
    for path, module in _holders(model):
        base = _base(module)
        if "expert" in f"{path}.{type(base).__name__}".lower():
            yield from (f"{path}.{n}" for n, p in base.named_parameters(recurse=False) if p.ndim == 3)


def _base(module: nn.Module) -> nn.Module:
    return module.base_layer if isinstance(module, SpectralExperts) else module


def _holders(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules by name, an adapted experts module once."""
    inside: tuple[str, ...] = ()
    for path, module in model.named_modules():
        if not path.startswith(inside or ("\0",)):
            yield path, module
        if isinstance(module, SpectralExperts):
            inside += (f"{path}.",)

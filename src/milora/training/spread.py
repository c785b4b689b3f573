"""Weights and optimizer states that several processes hold between them: whole ones out of them, and back.

FSDP2 keeps a parameter as a DTensor, of which each process has some rows; DeepSpeed ZeRO-3 keeps a flat part of it, and
float32 parts of what trains beside them. What is written of either has the form that one process writes: a checkpoint
says nothing of how many processes made it, and any number of them, spread or not, goes on from it.

All processes call these functions together and in the same order; each is a conversation among them.
"""

import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn import functional as F

from milora.errors import MiloraError
from milora.models.spread import gathered


def is_spread(trainer: Any) -> bool:
    """Whether the trainer's model is spread over processes, or is to be: not so where each has it whole (DDP)."""
    return bool(trainer.is_fsdp_enabled or _stage(trainer) == 3)


def check(trainer: Any) -> None:
    """Refuse the ways of spreading a model that adapters cannot go.

    Raises:
        MiloraError: FSDP's first version, which joins parameters and so cannot freeze some of them; AdaLoRA, whose
            ranks are allocated by the gradients of whole layers; a CPU, where accelerate makes DDP of FSDP in silence.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true" and not trainer.is_fsdp_enabled:
        raise MiloraError("distributed_type: got FSDP on a CPU, allowed on GPUs; torchrun alone trains on CPUs")
    version = getattr(trainer.accelerator.state.fsdp_plugin, "fsdp_version", 1) if trainer.is_fsdp_enabled else 2
    if version != 2:
        raise MiloraError(f"fsdp_version: got {version}, allowed 2 (fsdp_config of accelerate's file)")
    if trainer.uses_adalora and is_spread(trainer):
        raise MiloraError("adalora: got FSDP or ZeRO-3, allowed with the whole model on each process (torchrun alone)")


def leave_processes() -> None:
    """Take leave of the other processes, so that none is at a conversation when this one ends."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def whole(tensor: Tensor) -> Tensor:
    """The values of a parameter or buffer, whole; in float32 where ZeRO-3 keeps them so beside a shorter copy."""
    if isinstance(tensor, DTensor):
        return tensor.full_tensor().detach()
    if not _of_zero3(tensor):
        return tensor.detach()
    if tensor.requires_grad and hasattr(tensor, "_z3_optimizer"):
        return tensor._z3_optimizer.get_full_hp_param(tensor)  # pyright: ignore
    with gathered([tensor]):  # pyright: ignore[reportArgumentType]
        return tensor.detach().clone()


@torch.no_grad()
def put(parameter: Tensor, values: Tensor) -> None:
    """Give a parameter these whole values."""
    if isinstance(parameter, DTensor):
        parameter.copy_(_like(values, parameter))
    elif not _of_zero3(parameter):
        parameter.copy_(values)
    else:
        parameter.ds_tensor.copy_(_part(values, parameter))  # pyright: ignore
        if parameter.requires_grad and hasattr(parameter, "_z3_optimizer"):
            parameter._z3_optimizer.set_local_hp_param(_part(values, parameter), parameter)  # pyright: ignore


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """What is saved of a model, whole and on the CPU, by name: of a PEFT model all but the base's frozen weights.

    Returns:
        The tensors in the first process; in the others nothing.
    """
    first, state = torch.distributed.get_rank() == 0, {}
    known: dict[int, Tensor] = {}  # tied weights stay tied
    for name, tensor in model.state_dict(keep_vars=True).items():
        if _is_base(model, name, tensor):
            continue
        if id(tensor) not in known:
            values = whole(tensor)
            known[id(tensor)] = values.cpu() if first else values.new_empty(0)
        state[name] = known[id(tensor)]
    return state if first else {}


def load_state(model: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Put what a checkpoint holds into a model.

    Args:
        model: spread or not.
        saved: by the names in the file, in which PEFT leaves out the adapter's.

    Raises:
        MiloraError: a tensor that the model has no place for, or of another shape.
    """
    places = {_name_in_file(model, name): tensor for name, tensor in model.state_dict(keep_vars=True).items()}
    for name, values in saved.items():
        if name not in places:
            raise MiloraError(f"checkpoint: holds {name}, which the model has no place for")
        shape = getattr(places[name], "ds_shape", places[name].shape)
        if shape != values.shape:
            raise MiloraError(f"checkpoint: {name}: got shape {tuple(values.shape)}, the model's is {tuple(shape)}")
        put(places[name], values)


def optimizer_state(optimizer: Any) -> dict[str, Any]:
    """The state dict that the optimizer of a model on one process would have, out of that of one that is spread.

    Args:
        optimizer: accelerate's, around torch's (FSDP2) or around DeepSpeed's around torch's (ZeRO-3).
    """
    groups: list[dict[str, Any]] = []
    state: dict[int, dict[str, Any]] = {}
    for group, parameters in _groups(optimizer):
        numbers = range(len(state), len(state) + len(parameters))
        groups.append({**group, "params": list(numbers)})
        for number, parameter in zip(numbers, parameters, strict=True):
            state[number] = {key: value.cpu() for key, value in _moments(optimizer, parameter)}
    return {"state": {n: moments for n, moments in state.items() if moments}, "param_groups": groups}


@torch.no_grad()
def load_optimizer_state(optimizer: Any, saved: Mapping[str, Any]) -> None:
    """Bring back what `optimizer_state`, or the optimizer of a model on one process, has given.

    Raises:
        MiloraError: it is of another number of parameters.
    """
    groups = list(_groups(optimizer))
    there, here = [len(g["params"]) for g in saved["param_groups"]], [len(parameters) for _, parameters in groups]
    if there != here:
        raise MiloraError(f"checkpoint: the optimizer's groups hold {there} parameters, this run's {here}")
    for (group, parameters), before in zip(groups, saved["param_groups"], strict=True):
        group.update({key: value for key, value in before.items() if key != "params"})
        for parameter, number in zip(parameters, before["params"], strict=True):
            for key, value in saved["state"].get(number, {}).items():
                _put_moment(optimizer, parameter, key, value)


def _groups(optimizer: Any) -> Iterator[tuple[dict[str, Any], list[Tensor]]]:
    """The optimizer's parameter groups, each with its parameters in the order in which the model has them."""
    zero3 = _zero3(optimizer)
    for index, group in enumerate((zero3 or optimizer).optimizer.param_groups):
        parameters = group["params"]
        if zero3 is not None:  # torch's optimizer has flat parts of them joined
            parts = [part for i, part in enumerate(zero3.fp16_groups) if zero3.sub_group_to_group_id[i] == index]
            parameters = [parameter for part in parts for parameter in part]
        yield group, parameters


def _moments(optimizer: Any, parameter: Tensor) -> Iterator[tuple[str, Tensor]]:
    """What the optimizer keeps of a parameter: AdamW's step, and its moments, whole."""
    zero3 = _zero3(optimizer)
    if zero3 is None:
        for key, value in optimizer.optimizer.state.get(parameter, {}).items():
            yield key, whole(value)
        return
    flat, _, _ = _place(zero3, parameter)
    for key, value in zero3.optimizer.state.get(flat, {}).items():
        # The step is one tensor for all; read back as one, torch would count it up once for each parameter.
        yield key, zero3.get_full_hp_param(parameter, key) if value.shape == flat.shape else value.clone()


def _put_moment(optimizer: Any, parameter: Any, key: str, value: Tensor) -> None:
    zero3 = _zero3(optimizer)
    if zero3 is None:
        spread = value.shape == parameter.shape
        optimizer.optimizer.state[parameter][key] = _like(value, parameter) if spread else value.clone()
        return
    flat, start, size = _place(zero3, parameter)
    if value.shape != parameter.ds_shape:
        zero3.optimizer.state[flat][key] = value.clone()
        return
    moments = zero3.optimizer.state[flat].setdefault(key, torch.zeros_like(flat))
    moments.narrow(0, start, size).copy_(_part(value, parameter))


def _stage(trainer: Any) -> int | None:
    """The ZeRO stage, or None without DeepSpeed."""
    return trainer.accelerator.state.deepspeed_plugin.zero_stage if trainer.is_deepspeed_enabled else None


def _zero3(optimizer: Any) -> Any:
    """DeepSpeed's optimizer inside accelerate's, or None where there is none."""
    return optimizer.optimizer if hasattr(optimizer.optimizer, "fp16_groups") else None


def _place(zero3: Any, parameter: Tensor) -> tuple[Tensor, int, int]:
    """Where a parameter's part lies in what torch's optimizer trains: the flat tensor, the first number, how many."""
    group, start, size = zero3.grad_position[zero3.get_param_id(parameter)]
    return zero3.fp32_partitioned_groups_flat[group], start, size


def _of_zero3(tensor: Tensor) -> bool:
    return hasattr(tensor, "ds_id")


def _part(values: Tensor, parameter: Any) -> Tensor:  # (...) -> (n,)
    """This process's part of the values of a parameter of ZeRO-3: equal parts, the last one filled up with zeros."""
    group, size = parameter.ds_process_group, parameter.ds_tensor.numel()
    flat = values.reshape(-1).to(parameter.ds_tensor.device)
    filled = F.pad(flat, (0, size * torch.distributed.get_world_size(group) - flat.numel()))
    return filled.narrow(0, size * torch.distributed.get_rank(group), size)


def _like(values: Tensor, parameter: DTensor) -> DTensor:
    """Values as the parameter is spread."""
    here = values.to(parameter.device, parameter.dtype)
    return distribute_tensor(here, parameter.device_mesh, parameter.placements)


def _is_base(model: Any, name: str, tensor: Tensor) -> bool:
    """Whether PEFT leaves this out of an adapter: a frozen weight of the base (a bias may be asked for)."""
    tuner: Any = getattr(model, "base_model", None)
    if not hasattr(tuner, "prefix") or not isinstance(tensor, nn.Parameter):
        return False
    return not tensor.requires_grad and tuner.prefix not in name and not name.endswith("bias")


def _name_in_file(model: Any, name: str) -> str:
    for adapter in getattr(model, "peft_config", {}):
        name = name.replace(f"modules_to_save.{adapter}.", "").replace(f".{adapter}", "")
    return name

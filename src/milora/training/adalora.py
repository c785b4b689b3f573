"""AdaLoRA inside the Trainer. Zhang et al., arXiv 2303.10512.

    W' = W + (alpha / r_init) P diag(lambda) Q          P: (out, r), lambda: (r,), Q: (r, in)

PEFT has the layers and the budget; three things are left to the loop and are easily missed in silence:

- ``update_and_allocate`` must run at each optimiser step while the gradients are there: after the step and
  before they are cleared. Without it the ranks never fall and AdaLoRA is plain LoRA.
- the regulariser gamma * mean(||P^T P - I||_F, ||Q Q^T - I||_F) is added by PEFT to the model's own loss, which
  SFTTrainer does not use (it sums token log-probabilities itself). It is added here.
- a checkpoint of PEFT holds the remaining triplets only. Pruned ones still train and may return, so going on, and
  going back to the best checkpoint, needs all of them, whatever else trains (biases, modules_to_save) and the running
  importances: ``adalora_state.safetensors``.

PEFT names P lora_B, Q lora_A and lambda lora_E.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from milora.errors import MiloraError

STATE = "adalora_state.safetensors"


def schedule(total_step: int, r: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """AdaLoRA's settings scaled to a run; what the recipe gives stands.

    Args:
        total_step: optimiser steps of the run.
        r: the recipe's rank, meant as the mean rank that is left: the run starts from 1.5 r (the paper's 12 to 8).
        given: the recipe's ``method_settings``.

    Returns:
        ``method_settings`` with target_r, init_r, total_step, tinit, tfinal and deltaT: a tenth of the steps at
        the full budget, the last third at the final one, and about 50 changes in between.

    Raises:
        MiloraError: too few steps for the schedule, or init_r is not above target_r.
    """
    target_r = int(given.get("target_r", r))
    settings = {"target_r": target_r, "init_r": -(-3 * target_r // 2), **given, "total_step": total_step}
    settings.setdefault("tinit", total_step // 10)
    settings.setdefault("tfinal", total_step // 3)
    between = total_step - settings["tfinal"] - settings["tinit"]
    settings.setdefault("deltaT", max(1, between // 50))
    if settings["init_r"] <= target_r or target_r < 1:
        raise MiloraError(
            f"adalora: got init_r {settings['init_r']} and target_r {target_r}, allowed init_r > target_r >= 1"
        )
    # The last allocation is at step total_step - tfinal and goes by the importances of the steps before it.
    if between < 1 or total_step - settings["tfinal"] < 2 or settings["tinit"] < 0 or settings["tfinal"] < 0:
        raise MiloraError(
            f"adalora: got tinit {settings['tinit']}, tfinal {settings['tfinal']} and {total_step} steps, "
            "allowed tinit + tfinal < steps and tfinal + 2 <= steps"
        )
    return settings


class RankBudget(TrainerCallback):
    """Allocate ranks at each optimiser step, and put their sum into the log as ``rank_budget``.

    Args:
        r, given: as in ``schedule``, which is worked out again for the steps that the Trainer really makes.
    """

    def __init__(self, r: int, given: Mapping[str, Any]):
        self.r = r
        self.given = given

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        # The number of steps was worked out before the trainer was there; packing makes it smaller.
        config = _tuner(model).peft_config[_adapter(model)]
        for key, value in schedule(state.max_steps, self.r, self.given).items():
            if key in ("total_step", "tinit", "tfinal", "deltaT"):
                setattr(config, key, value)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        # The Trainer counts this step after the callback.
        _tuner(model).update_and_allocate(state.global_step + 1)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        logs: Any = None,
        **_: Any,
    ) -> None:
        if logs is not None and "loss" in logs:
            logs["rank_budget"] = rank_budget(model)


def rank_budget(model: nn.Module) -> int:
    """The sum of the ranks over all layers: entries of lambda that are not masked.

    Before the first allocation nothing is masked, though lambda is zero.
    """
    pattern = _tuner(model).peft_config[_adapter(model)].rank_pattern
    lambdas = [p for name, p in model.named_parameters() if f"lora_E.{_adapter(model)}" in name]  # each (r, 1)
    return sum(sum(kept) for kept in pattern.values()) if pattern else sum(p.shape[0] for p in lambdas)


def orthogonality(model: nn.Module) -> Tensor:
    """gamma times the mean over all P and Q of ||P^T P - I||_F and ||Q Q^T - I||_F; a scalar tensor.

    The un-squared norm is that of the authors' code and of PEFT; the paper squares it.
    """
    adapter = _adapter(model)
    norms = []
    for name, p in model.named_parameters():
        if f"lora_A.{adapter}" in name or f"lora_B.{adapter}" in name:
            gram = p @ p.T if "lora_A" in name else p.T @ p  # (r, r)
            norms.append(torch.linalg.norm(gram - torch.eye(len(gram), device=p.device, dtype=p.dtype)))
    return _tuner(model).peft_config[adapter].orth_reg_weight * torch.stack(norms).mean()


def save_state(model: nn.Module, folder: str | Path) -> None:
    """Write all that trains, the running importances and the mask of the ranks into a checkpoint folder."""
    tensors = {f"weight.{name}": p.detach() for name, p in _trained(model).items()}
    allocator = _tuner(model).rankallocator
    for kind in ("ipt", "exp_avg_ipt", "exp_avg_unc"):
        tensors |= {f"{kind}.{name}": value for name, value in getattr(allocator, kind).items()}
    pattern = _tuner(model).peft_config[_adapter(model)].rank_pattern
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        Path(folder) / STATE,
        metadata={"rank_pattern": json.dumps(pattern)},
    )


def load_state(model: nn.Module, folder: str | Path) -> None:
    """Bring back what ``save_state`` wrote, in place."""
    parameters, allocator = _trained(model), _tuner(model).rankallocator
    allocator.reset_ipt()
    with safe_open(Path(folder) / STATE, framework="pt") as file, torch.no_grad():
        for key in file.keys():  # noqa: SIM118  (no mapping: it has keys and no iterator)
            kind, name = key.split(".", 1)
            if kind == "weight":
                parameters[name].copy_(file.get_tensor(key))
            else:
                getattr(allocator, kind)[name] = file.get_tensor(key).to(parameters[name].device)
        pattern = json.loads(file.metadata()["rank_pattern"])
    _tuner(model).peft_config[_adapter(model)].rank_pattern = pattern


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The triplets, and biases and modules_to_save that train beside them."""
    adapter, named = _adapter(model), _tuner(model).model.named_parameters()
    return {n: p for n, p in named if ("lora_" in n and f".{adapter}" in n) or p.requires_grad}


def _tuner(model: Any) -> Any:
    return model.base_model


def _adapter(model: Any) -> str:
    return _tuner(model).trainable_adapter_name

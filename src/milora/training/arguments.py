"""A recipe as TRL's SFTConfig. The only place where recipe keys become trainer arguments.

TRL's and transformers' defaults that differ from the recipes' are always overwritten: TRL turns bf16 and
gradient checkpointing on, logs every 10 steps and has learning rate 2e-5.
"""

import math
from importlib.util import find_spec
from typing import Any

import torch
from trl.trainer.sft_config import SFTConfig

from milora.errors import MiloraError
from milora.recipes.keys import MatchedRate
from milora.recipes.schema import Recipe
from milora.runs import RunFolder

# Recipe keys that SFTConfig knows under the same name and with the same meaning.
SAME_NAME = (
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "optim",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "seed",
    "logging_steps",
    "eval_strategy",
    "eval_steps",
    "save_strategy",
    "save_steps",
    "save_total_limit",
    "load_best_model_at_end",
    "report_to",
    "packing",
)

# What holds for every run, with the reason.
ALWAYS: dict[str, Any] = {
    "max_length": None,  # rows are cut, dropped or refused before they get here, and that is said
    "metric_for_best_model": "eval_loss",
    "greater_is_better": False,
    "logging_nan_inf_filter": False,  # a loss that is NaN is shown, and stops the run
    "logging_first_step": True,
    "disable_tqdm": True,
    "dataloader_pin_memory": torch.cuda.is_available(),
}

# transformers renames this argument and warns of the old name, which TRL sets to true.
_CHECKPOINTING = "activation_checkpointing"
if _CHECKPOINTING not in SFTConfig.__dataclass_fields__:
    _CHECKPOINTING = "gradient_checkpointing"


def sft_arguments(recipe: Recipe, run: RunFolder, *, has_eval: bool, limit: int | None) -> SFTConfig:
    """Build the trainer's arguments.

    Args:
        recipe: the resolved recipe.
        run: where checkpoints go.
        has_eval: whether there are validation rows.
        limit: the longest row allowed, in tokens; packing fills blocks of this size.

    Raises:
        MiloraError: a combination that cannot run, e.g. the best checkpoint without validation rows.
    """
    _check(recipe, has_eval)
    settings = recipe.model_dump(mode="python")
    arguments = {key: settings[key] for key in SAME_NAME if settings.get(key) is not None}
    if isinstance(recipe.learning_rate, MatchedRate):
        arguments["learning_rate"] = recipe.learning_rate.at  # until the factors are there to match it by
    arguments |= ALWAYS
    arguments |= {"output_dir": str(run.path), "use_cpu": uses_cpu(recipe), "bf16": uses_bf16(recipe)}
    arguments |= {_CHECKPOINTING: recipe.gradient_checkpointing}
    if not has_eval:
        arguments |= {"eval_strategy": "no"}
    if recipe.packing:
        arguments |= {"max_length": limit, "eval_packing": False}
    try:
        return SFTConfig(**arguments)
    except (ValueError, TypeError) as error:
        raise MiloraError(f"recipe: {str(error).strip().splitlines()[0]}") from error


def uses_cpu(recipe: Recipe) -> bool:
    """Whether the run is on the CPU: asked for, or there is nothing else."""
    if recipe.device:
        return str(recipe.device).startswith("cpu")
    return not torch.cuda.is_available()


def uses_bf16(recipe: Recipe) -> bool:
    """Whether to compute in bfloat16 (autocast). ``auto``: on a GPU that has it; on a CPU only when asked for,
    because few have it and the others are slower with it.

    Raises:
        MiloraError: asked for on a GPU without it.
    """
    wanted = recipe.bf16
    if uses_cpu(recipe):
        return wanted is True
    has_it = torch.cuda.is_bf16_supported(including_emulation=False)
    if wanted is True and not has_it:
        raise MiloraError(f"bf16: got true on {torch.cuda.get_device_name()}, which lacks it; allowed false or auto")
    return has_it and wanted is not False


def optimiser_steps(arguments: SFTConfig, rows: int) -> int:
    """The number of optimiser steps of a run over ``rows`` unpacked rows, counted as the Trainer counts."""
    if arguments.max_steps > 0:
        return arguments.max_steps
    batches = math.ceil(rows / (arguments.per_device_train_batch_size * arguments.world_size))
    per_epoch = math.ceil(batches / arguments.gradient_accumulation_steps)
    return math.ceil(arguments.num_train_epochs * per_epoch)


def _check(recipe: Recipe, has_eval: bool) -> None:
    if recipe.load_best_model_at_end:
        if not has_eval:
            raise MiloraError(
                "load_best_model_at_end: got true and no validation rows, allowed with val_set_size or eval_dataset"
            )
        if recipe.eval_strategy == "no" or recipe.eval_strategy != recipe.save_strategy:
            raise MiloraError(
                f"load_best_model_at_end: got eval_strategy {recipe.eval_strategy} and save_strategy "
                f"{recipe.save_strategy}, allowed the same one for both, steps or epoch"
            )
    asked = [recipe.report_to] if isinstance(recipe.report_to, str) else recipe.report_to or []
    if "tensorboard" in asked and find_spec("tensorboard") is None:
        raise MiloraError("report_to: got tensorboard, which is not installed (pip install tensorboard)")
    if recipe.packing and not recipe.max_length:
        raise MiloraError("packing: got true without max_length, which is the size of a block")

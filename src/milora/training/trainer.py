"""SFTTrainer with what this package needs changed, and nothing else."""

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerState
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl.trainer.sft_trainer import SFTTrainer

from milora.errors import MiloraError
from milora.training import adalora, spread
from milora.training.checkpoints import read_weights
from milora.training.masking import IMAGE
from milora.training.pictures import SAVED, ByModality


class RunTrainer(SFTTrainer):
    """TRL's trainer for a run folder.

    - TRL reports each start of training to its makers over the network; a run tells nobody.
    - TRL writes its own README.md into the output folder at every checkpoint; the run folder has one of its own.
    - A checkpoint whose writing fails is deleted, so that what is left can all be resumed from.
    - TRL rounds what trains on a quantised base to bfloat16, in which small steps are lost; it keeps its dtype.
    - AdaLoRA gets its regulariser and whole checkpoints (see ``adalora``).
    - Checkpoints of a model that is spread over processes have the form of one that is not (see ``spread``).
    - Modules that train in full may have a learning rate of their own.
    - Rows may have pictures, and be ordered by whether they have (see ``pictures``).
    """

    model: Any  # transformers allows None before it is set
    lr_scheduler: Any

    def __init__(
        self,
        model: Any,
        *args: Any,
        uses_adalora: bool = False,
        modules_to_save_learning_rate: float | None = None,
        group_by_modality_length: bool = False,
        **kwargs: Any,
    ):
        self.uses_adalora = uses_adalora
        self.modules_to_save_learning_rate = modules_to_save_learning_rate
        self.group_by_modality_length = group_by_modality_length
        as_made = {p: p.data for p in model.parameters() if p.requires_grad}
        super().__init__(model, *args, **kwargs)
        for parameter, values in as_made.items():
            if parameter.dtype != values.dtype:
                parameter.data = values.to(parameter.device)
        spread.check(self)

    def _send_telemetry(self) -> None:
        pass

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        pass

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if not self.uses_adalora or not self.model.training or not isinstance(loss, Tensor):
            return loss
        # The losses of the accumulated batches are added up, so each carries its share of the regulariser.
        return loss + adalora.orthogonality(self.model) / self.current_gradient_accumulation_steps

    def create_optimizer(self, model: Any = None) -> Any:
        optimizer: Any = super().create_optimizer(model)
        # An adapter has nothing that is exempt from weight decay. DeepSpeed drops a group of nothing and torch keeps
        # it; the checkpoints of both are to be the same.
        groups = optimizer.param_groups
        if self.modules_to_save_learning_rate is not None:
            saved = {p for name, p in (model or self.model).named_parameters() if SAVED in name}
            rate = {"lr": self.modules_to_save_learning_rate}
            groups = [{**g, "params": [p for p in g["params"] if p not in saved]} for g in groups] + [
                {**g, **rate, "params": [p for p in g["params"] if p in saved]} for g in groups
            ]
        optimizer.param_groups[:] = [group for group in groups if group["params"]]
        return optimizer

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if self._is_vision_dataset:  # TRL expects conversations, which its own collator would make ids of
            self._signature_columns = ["input_ids", "labels", IMAGE]

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        if not self.group_by_modality_length or IMAGE not in rows.column_names:
            return super()._get_train_sampler(train_dataset)
        batches = self.args.gradient_accumulation_steps * self.args.world_size
        return ByModality(rows, self.args.train_batch_size, batches, self.args.seed)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if spread.is_spread(self):
            self._save(output_dir, state_dict=spread.whole_state(self.accelerator.unwrap_model(self.model)))
        else:
            super().save_model(output_dir, _internal_call)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not spread.is_spread(self):
            return super()._save_optimizer_and_scheduler(output_dir)
        state, scheduler = spread.optimizer_state(self.optimizer), self.lr_scheduler
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        # transformers would have a spread model read its own kind of checkpoint here.
        if resume_from_checkpoint is None or not spread.is_spread(self):
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        self._load_from_checkpoint(resume_from_checkpoint)
        self._load_optimizer_and_scheduler(resume_from_checkpoint)
        return prepared

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not spread.is_spread(self):
            return super()._load_optimizer_and_scheduler(checkpoint)
        spread.load_optimizer_state(self.optimizer, _read(Path(checkpoint) / OPTIMIZER_NAME))
        self.lr_scheduler.load_state_dict(_read(Path(checkpoint) / SCHEDULER_NAME))

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        if self.uses_adalora and self.args.should_save:
            adalora.save_state(self.model, output_dir or self.args.output_dir or ".")

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self.args.output_dir or ".") / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
        except Exception:
            if self.args.should_save:
                shutil.rmtree(folder, ignore_errors=True)
            raise

    def finish_from(self, checkpoint: Path) -> bool:
        """Take the end of training from a checkpoint of the last step: ``train`` would make one step more.

        Args:
            checkpoint: a complete checkpoint folder.

        Returns:
            False, and nothing is touched, if there are steps left to train.
        """
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if state.global_step < state.max_steps:
            return False
        state.is_world_process_zero = self.is_world_process_zero()
        state.is_local_process_zero = self.is_local_process_zero()
        self.state = state
        self.control = self.callback_handler.on_train_begin(self.args, self.state, self.control)
        self._load_from_checkpoint(str(checkpoint))
        best = state.best_model_checkpoint
        if self.args.load_best_model_at_end and best is not None:
            here = Path(self.args.output_dir or ".") / Path(best).name  # the run may have been moved
            if not here.is_dir():
                raise MiloraError(f"--resume: {here}, the best checkpoint, is not there; allowed with it alone")
            state.best_model_checkpoint = str(here)
            self._load_best_model()
        self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
        return True

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.uses_adalora:
            adalora.load_state(self.model, resume_from_checkpoint)
        elif spread.is_spread(self):
            spread.load_state(self.accelerator.unwrap_model(self.model), read_weights(Path(resume_from_checkpoint)))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        if best is not None and (self.uses_adalora or spread.is_spread(self)):
            self._load_from_checkpoint(best)
        else:
            super()._load_best_model()


def _read(file: Path) -> Any:
    return torch.load(file, map_location="cpu", weights_only=True)

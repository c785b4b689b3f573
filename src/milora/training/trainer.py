"""SFTTrainer with what this package needs changed, and nothing else."""

import shutil
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl.trainer.sft_trainer import SFTTrainer

from milora.training import adalora


class RunTrainer(SFTTrainer):
    """TRL's trainer for a run folder.

    - TRL reports each start of training to its makers over the network; a run tells nobody.
    - TRL writes its own README.md into the output folder at every checkpoint; the run folder has one of its own.
    - A checkpoint whose writing fails is deleted, so that what is left can all be resumed from.
    - TRL rounds what trains on a quantised base to bfloat16, in which small steps are lost; it keeps its dtype.
    - AdaLoRA gets its regulariser and whole checkpoints (see ``adalora``).
    """

    model: Any  # transformers allows None before it is set

    def __init__(self, model: Any, *args: Any, uses_adalora: bool = False, **kwargs: Any):
        self.uses_adalora = uses_adalora
        as_made = {p: p.data for p in model.parameters() if p.requires_grad}
        super().__init__(model, *args, **kwargs)
        for parameter, values in as_made.items():
            if parameter.dtype != values.dtype:
                parameter.data = values.to(parameter.device)

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
        if self.args.load_best_model_at_end and best is not None and Path(best).is_dir():
            self._load_best_model()
        self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
        return True

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.uses_adalora:
            adalora.load_state(self.model, resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if self.uses_adalora and self.state.best_model_checkpoint:
            adalora.load_state(self.model, self.state.best_model_checkpoint)
        else:
            super()._load_best_model()

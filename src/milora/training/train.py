"""A recipe becomes a run folder."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import PrinterCallback, set_seed
from trl.trainer.sft_config import SFTConfig

from milora.adapters import attach, check_leaves, decomposed_from, peft_config
from milora.decompositions.workers import Rank
from milora.errors import MiloraError
from milora.models.fingerprint import model_fingerprint
from milora.models.load import load_model, load_processor, load_tokenizer
from milora.models.pictures import Pictures, freeze_vision_tower, takes_pictures
from milora.models.quantised import number_count
from milora.recipes.schema import Recipe
from milora.runs import RunFolder, keep_metrics_up_to, model_card, provenance
from milora.training import adalora
from milora.training.arguments import optimiser_steps, sft_arguments
from milora.training.checkpoints import newest_complete, step_of
from milora.training.data import Data, load_data
from milora.training.masking import IMAGE
from milora.training.matching import match_rate
from milora.training.pictures import PictureCollator, widen_saved_modules
from milora.training.progress import MetricsWriter, ProgressLine, StopOnNonFiniteLoss
from milora.training.quiet import quiet_libraries
from milora.training.saving import disk_full_in_one_line, save_result
from milora.training.shared_base import SharedBase
from milora.training.spread import is_spread, whole_state
from milora.training.summary import summary
from milora.training.trainer import RunTrainer


def train(
    recipe: Recipe,
    *,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
    base: SharedBase | None = None,
) -> RunFolder:
    """Fine-tune a model by a recipe.

    Args:
        recipe: the resolved recipe; ``output_dir`` becomes the run folder.
        resume: go on from the newest complete checkpoint of the run in ``output_dir``. In float32 on a CPU the
            weights at the end are those of a run that was never stopped, to the last bit.
        overwrite: replace the run in ``output_dir``.
        console: where progress and the summary go; None keeps quiet.
        base: a loaded base model that the run borrows and gives back as it was; a run that it does not serve (full
            fine-tuning, another base) loads its own.

    Returns:
        The run folder: adapter, recipe, provenance, metrics and model card.

    Raises:
        MiloraError: a model, data set, recipe or folder that cannot be used, told before anything is written; or
            a full disk, or a loss that is no number any more.
    """
    run = RunFolder(recipe.output_dir)
    run.check(recipe, overwrite=overwrite, resume=resume)
    if console is None or Rank.of_environment().rank > 0:  # of several processes the first one speaks
        console = Console(quiet=True)
    started = time.monotonic()
    borrowed = base.lent() if base is not None and base.serves(recipe) else nullcontext()
    with quiet_libraries(adalora=recipe.method == "adalora"), disk_full_in_one_line(run.path), borrowed as model:
        with _removed_unless_started(run):
            trainer, record = _build(recipe, run, console, resume, model)
            # Of several processes the first one writes, and all of them find the folder as it leaves it.
            if trainer.is_world_process_zero():
                if resume:
                    run.check_inputs(record)
                run.create(recipe, overwrite=overwrite, resume=resume)
                run.write_provenance(record)
            trainer.accelerator.wait_for_everyone()
        checkpoint = _checkpoint(trainer, run, console) if resume else None
        _fit(trainer, run, recipe, checkpoint, console)
        model = trainer.accelerator.unwrap_model(trainer.model)
        state = whole_state(model) if is_spread(trainer) else None
        if trainer.is_world_process_zero():
            save_result(model, trainer.processing_class, recipe, run, state)
            run.write_card(model_card(recipe, run.provenance(), run.results()))
            console.print(summary(trainer, run, record, time.monotonic() - started))
        # Launchers stop all processes when one of them ends badly: none may leave while the first one writes.
        trainer.accelerator.wait_for_everyone()
    return run


def _build(
    recipe: Recipe, run: RunFolder, console: Console, resume: bool, model: Any = None
) -> tuple[RunTrainer, dict[str, Any]]:
    """Read and check everything; returns the trainer and what goes into provenance.json."""
    # PEFT draws the start of some adapters from the global generator.
    set_seed(recipe.seed)
    tokenizer = load_tokenizer(
        recipe.model_name_or_path, trust_remote_code=recipe.trust_remote_code, gguf_file=recipe.gguf_file
    )
    processor = load_processor(recipe.model_name_or_path, trust_remote_code=recipe.trust_remote_code)
    pictures = Pictures(processor) if processor else None
    data = load_data(recipe, tokenizer, console, pictures)
    # Before the model is read: they join the processes that may have to share it.
    arguments = sft_arguments(recipe, run, has_eval=data.validation is not None, limit=data.lengths["dataset"].limit)
    model = _load_model(recipe, console) if model is None else model
    record = provenance(seeds={"seed": recipe.seed}, data_hash=data.sha256, base_fingerprint=model_fingerprint(model))
    model = _attach(recipe, model, arguments, len(data.train), console)
    record |= match_rate(recipe, model, arguments, run.provenance() if resume else {}, console)
    trainable, total = _count(model)
    record |= {
        "trainable_parameters": trainable,
        "parameters": total,
        "processes": arguments.world_size,
        "data": {name: lengths.as_dict() for name, lengths in data.lengths.items()},
    }
    return _trainer(recipe, model, tokenizer, pictures, data, arguments), record


def _load_model(recipe: Recipe, console: Console) -> Any:
    with console.status(f"loading {recipe.model_name_or_path}"):
        return load_model(
            recipe.model_name_or_path,
            dtype=recipe.base_dtype,
            device=recipe.device,
            trust_remote_code=recipe.trust_remote_code,
            gguf_file=recipe.gguf_file,
            quantization=recipe.base_quantization,
        )


def _attach(recipe: Recipe, model: Any, arguments: SFTConfig, rows: int, console: Console) -> Any:
    settings = recipe.model_dump()
    if recipe.method == "adalora":
        steps = optimiser_steps(arguments, rows)
        settings["method_settings"] = adalora.schedule(steps, recipe.lora_r, recipe.method_settings)
    config = peft_config(settings)
    if config is None:
        freeze_vision_tower(model)
        return model
    with console.status(f"starting {recipe.method} on {recipe.target_modules}"):
        adapted = attach(model, config)
    check_leaves(adapted)
    if arguments.bf16 and takes_pictures(model.config):
        widen_saved_modules(adapted)
    if source := decomposed_from(adapted):
        console.print(f"{recipe.base_quantization or 'quantised'} base: decomposed {source}", highlight=False)
    return adapted


def _count(model: Any) -> tuple[int, int]:
    sizes = [(number_count(p), p.requires_grad) for p in model.parameters()]
    return sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)


def _trainer(
    recipe: Recipe, model: Any, tokenizer: Any, pictures: Pictures | None, data: Data, arguments: SFTConfig
) -> RunTrainer:
    shown = pictures if IMAGE in data.train.column_names else None
    try:
        trainer = RunTrainer(
            model,
            args=arguments,
            train_dataset=data.train,
            eval_dataset=data.validation,
            processing_class=shown.processor if shown else tokenizer,
            data_collator=PictureCollator(shown) if shown else None,
            modules_to_save_learning_rate=recipe.modules_to_save_learning_rate,
            group_by_modality_length=recipe.group_by_modality_length,
            uses_adalora=recipe.method == "adalora",
        )
    except ValueError as error:
        raise MiloraError(f"training: {str(error).strip().splitlines()[0]}") from error
    trainer.remove_callback(PrinterCallback)
    return trainer


def _fit(trainer: RunTrainer, run: RunFolder, recipe: Recipe, checkpoint: Path | None, console: Console) -> None:
    line = ProgressLine(console)
    if trainer.uses_adalora:
        # First, so that its number is in the log events that the others write and show.
        trainer.add_callback(adalora.RankBudget(recipe.lora_r, recipe.method_settings))
    for callback in (MetricsWriter(run.append_metric), line, StopOnNonFiniteLoss()):
        trainer.add_callback(callback)
    try:
        if checkpoint is None or not trainer.finish_from(checkpoint):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        _evaluate_at_end(trainer)
    finally:
        line.close()


def _evaluate_at_end(trainer: RunTrainer) -> None:
    # The best checkpoint has its loss already, and so has a last step that was just measured.
    if trainer.eval_dataset is None or trainer.args.load_best_model_at_end:
        return
    measured = [event["step"] for event in trainer.state.log_history if "eval_loss" in event]
    if not measured or measured[-1] != trainer.state.global_step:
        trainer.evaluate()


def _checkpoint(trainer: RunTrainer, run: RunFolder, console: Console) -> Path | None:
    checkpoint, skipped = newest_complete(run.checkpoints())
    for sentence in skipped:
        console.print(f"resume: {sentence}", style="yellow", highlight=False)
    step = step_of(checkpoint) if checkpoint else 0
    console.print(f"resume: from step {step}" + ("" if checkpoint else ", no complete checkpoint"), highlight=False)
    if trainer.is_world_process_zero():
        keep_metrics_up_to(run.metrics_file, step)
    return checkpoint


@contextmanager
def _removed_unless_started(run: RunFolder) -> Iterator[None]:
    # The Trainer makes its output folder when it is built; a run that is refused after that leaves none behind.
    existed = run.path.exists()
    try:
        yield
    except BaseException:
        # Another process may have started its run there in the meantime.
        if not existed and not any(path.is_file() for path in run.path.rglob("*")):
            shutil.rmtree(run.path, ignore_errors=True)
        raise

"""TRL's trainers and transformers' own take a `SpectralConfig` or an adapted model as they take PEFT's."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoTokenizer, Trainer, TrainingArguments
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from adapters.steps import adapt, logits, train_steps
from milora.adapters import SpectralConfig, SpectralLinear
from milora.methods import METHODS

pytestmark = pytest.mark.parametrize("method", sorted(METHODS))


def config(method: str) -> SpectralConfig:
    return SpectralConfig(method=method, r=8, lora_dropout=0.3, target_modules="all-linear", task_type="CAUSAL_LM")


def arguments(kind: type, folder: Path, **settings: Any) -> Any:
    common = {"max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "logging_steps": 1}
    quiet = {"report_to": [], "save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "bf16": False}
    return kind(output_dir=str(folder / "run"), **common, **quiet, **settings)


def on_the_way(trainer: Trainer, key: str) -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def frozen(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}


def preferences() -> Dataset:
    rows = [{"prompt": f"q{i}:", "chosen": f" good {i}{i}", "rejected": f" bad {i}"} for i in range(8)]
    return Dataset.from_list(rows)


def dpo(model: nn.Module, tokenizer: Any, folder: Path, **settings: Any) -> DPOTrainer:
    own = {"gradient_checkpointing": False, "disable_dropout": settings.pop("disable_dropout", False)}
    args = arguments(DPOConfig, folder, **own)
    return DPOTrainer(model=model, args=args, train_dataset=preferences(), processing_class=tokenizer, **settings)


def reference(trainer: DPOTrainer, batch: dict[str, Tensor], model: nn.Module | None = None) -> Tensor:
    """The reference log-probabilities (2, batch) that the trainer computes."""
    asked = trainer.model if model is None else model
    return torch.stack(trainer.compute_ref_log_probs(asked, batch))


@pytest.fixture
def tokenizer(tiny_llama):
    return AutoTokenizer.from_pretrained(tiny_llama)


def test_sft_trains_and_saves(base, ids, tokenizer, method, tmp_path):
    rows = Dataset.from_list([{"prompt": f"q{i}:", "completion": f" answer {i}"} for i in range(8)])
    args = arguments(SFTConfig, tmp_path, gradient_checkpointing=False)
    trainer = SFTTrainer(
        model=base(), args=args, train_dataset=rows, processing_class=tokenizer, peft_config=config(method)
    )
    assert sum(isinstance(m, SpectralLinear) for m in trainer.model.modules()) == 14
    start = frozen(trainer.model)
    trainer.train()
    assert len(on_the_way(trainer, "loss")) == 3
    assert start and all(torch.equal(trainer.model.get_parameter(name), value) for name, value in start.items())
    trainer.save_model(str(tmp_path / "out"))
    trained = logits(trainer.model.eval(), ids)
    assert not torch.equal(trained, logits(base(), ids))
    assert torch.equal(logits(PeftModel.from_pretrained(base(), tmp_path / "out"), ids), trained)


def test_the_reference_of_dpo_is_the_base_at_any_time(base, tokenizer, method, tmp_path):
    plain = dpo(base(), tokenizer, tmp_path, ref_model=base())
    trainer = dpo(base(), tokenizer, tmp_path, peft_config=config(method))
    batch = next(iter(trainer.get_train_dataloader()))
    expected = reference(plain, batch, plain.ref_model)
    assert torch.equal(reference(trainer, batch), expected)
    trainer.train()
    # At the start the policy is its reference, dropout and all: a margin of exactly 0, a loss of exactly log 2.
    assert on_the_way(trainer, "rewards/margins")[0] == 0 == on_the_way(trainer, "rewards/chosen")[0]
    assert on_the_way(trainer, "loss")[0] == pytest.approx(math.log(2), abs=1e-7)
    assert on_the_way(trainer, "rewards/margins")[-1] != 0
    assert torch.equal(reference(trainer, batch), expected)


@pytest.mark.parametrize("loaded", [False, True], ids=["in_memory", "loaded"])
def test_the_reference_of_dpo_on_a_trained_adapter_is_that_adapter(base, ids, tokenizer, method, tmp_path, loaded):
    adapted = adapt(base(), method)
    train_steps(adapted, ids)
    handed_over = logits(adapted, ids)
    if loaded:
        adapted.save_pretrained(tmp_path / "adapter")
        adapted = PeftModel.from_pretrained(base(), tmp_path / "adapter", is_trainable=True)
    trainable = {n for n, p in adapted.named_parameters() if p.requires_grad}
    trainer = dpo(adapted, tokenizer, tmp_path, disable_dropout=True)
    batch = next(iter(trainer.get_train_dataloader()))
    expected = reference(trainer, batch)
    with adapted.disable_adapter():
        assert not torch.equal(logits(adapted, ids), handed_over)
    trainer.train()
    assert torch.equal(reference(trainer, batch), expected)
    assert {n for n, p in adapted.named_parameters() if p.requires_grad} == trainable
    adapted.eval()
    assert not torch.equal(logits(adapted, ids), handed_over)
    adapted.set_adapter("ref")
    assert torch.equal(logits(adapted, ids), handed_over)


def test_transformers_trainer_trains_an_adapted_model(base, ids, method, tmp_path):
    rows = Dataset.from_list([{"input_ids": row, "labels": row} for row in ids.repeat(4, 1).tolist()])
    model = adapt(base(), method)
    start = frozen(model)
    trainer = Trainer(model=model, args=arguments(TrainingArguments, tmp_path), train_dataset=rows)
    trainer.train()
    assert on_the_way(trainer, "loss")[-1] < on_the_way(trainer, "loss")[0]
    assert start and all(torch.equal(model.get_parameter(name), value) for name, value in start.items())
    trainer.save_model(str(tmp_path / "out"))
    again = PeftModel.from_pretrained(base(), tmp_path / "out")
    assert torch.equal(logits(again, ids), logits(model.eval(), ids))

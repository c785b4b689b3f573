"""Settings that must not change what is learnt: accumulation, gradient checkpointing, packing."""

import pytest
import torch
from safetensors.torch import load_file

from milora.recipes.schema import Recipe
from milora.runs import read_metrics
from milora.training.train import train
from milora.training.trainer import RunTrainer

# Plain SGD: Adam divides by the gradient's size and would blow rounding up where a gradient is near zero.
SGD = {"optim": "sgd", "learning_rate": 0.5, "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "max_steps": 3}


def run(settings, **changes):
    done = train(Recipe(**settings | SGD | changes), overwrite=True)
    losses = [record["loss"] for record in read_metrics(done.metrics_file) if "loss" in record]
    return load_file(done.own_adapter() / "adapter_model.safetensors"), losses


def moved(left, right):
    return max((left[name] - right[name]).abs().max().item() for name in left)


def test_accumulated_batches_are_one_larger_batch(settings):
    # The rows differ in length: a mean of the batches' means would weigh short rows more.
    settings["lora_dropout"] = 0.0
    large, large_losses = run(settings, per_device_train_batch_size=8)
    small, small_losses = run(settings, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    start, _ = run(settings, per_device_train_batch_size=8, learning_rate=1e-12)
    assert moved(large, start) > 1e-3
    assert moved(large, small) < 1e-5
    assert large_losses == pytest.approx(small_losses, rel=1e-5)


@pytest.mark.parametrize("method", ["milora", "lora"])
def test_gradient_checkpointing_changes_nothing(settings, monkeypatch, method):
    settings |= {"method": method, "lora_dropout": 0.2}
    was_on = []
    compute_loss = RunTrainer.compute_loss

    def spying(self, model, *args, **kwargs):
        was_on.append(self.model.get_base_model().is_activation_checkpointing)
        return compute_loss(self, model, *args, **kwargs)

    monkeypatch.setattr(RunTrainer, "compute_loss", spying)
    plain, plain_losses = run(settings)
    again, again_losses = run(settings, gradient_checkpointing=True)
    assert was_on == [False] * 3 + [True] * 3
    assert plain_losses == pytest.approx(again_losses, rel=1e-6)
    assert moved(plain, again) < 1e-6


def test_packed_rows_do_not_see_one_another(settings):
    # All rows in one batch, packed or padded: the same tokens, each in its own context.
    settings["lora_dropout"] = 0.0
    settings["max_length"] = 512
    apart, apart_losses = run(settings, per_device_train_batch_size=24)
    packed, packed_losses = run(settings, per_device_train_batch_size=24, packing=True)
    assert packed_losses == pytest.approx(apart_losses, rel=1e-4)
    assert moved(apart, packed) < 1e-4


def test_bf16_is_left_off_on_a_cpu_unless_asked(recipe, settings):
    from milora.training.arguments import uses_bf16

    assert not uses_bf16(recipe)
    assert uses_bf16(Recipe(**settings | {"bf16": True}))
    losses = run(settings, bf16=True)[1]
    assert len(losses) == 3 and all(torch.isfinite(torch.tensor(losses)))

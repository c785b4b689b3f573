"""Runs on a quantised base: the same run folder, and what reads it knows the base."""

import json
import warnings

import pytest
import torch

from adapters.quantised import skip_unless_installed
from milora.adapters import SpectralLinear
from milora.models.quantised import QUANTIZATIONS, quantization_of
from milora.recipes.schema import Recipe
from milora.runs import RunFolder, read_metrics
from milora.runs.tuned import load_tuned, quantised_base
from milora.training import trainer
from milora.training.train import train

each_quantization = pytest.mark.parametrize("quantization", QUANTIZATIONS)


@pytest.fixture
def quantised_settings(settings, quantization):
    """A run with validation, which on some CPUs is where a 4-bit base loses its gradients."""
    skip_unless_installed(quantization)
    return settings | {
        "quantization": quantization,
        "val_set_size": 4,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "learning_rate": 2e-2,
    }


@each_quantization
def test_a_run_trains_in_float32_and_is_read_back(quantised_settings, quantization, monkeypatch):
    dtypes = set()
    training_step = trainer.RunTrainer.training_step

    def watched(self, model, *args, **kwargs):
        dtypes.update(p.dtype for p in model.parameters() if p.requires_grad)
        return training_step(self, model, *args, **kwargs)

    monkeypatch.setattr(trainer.RunTrainer, "training_step", watched)
    run = train(Recipe(**quantised_settings))
    assert dtypes == {torch.float32}
    metrics = list(read_metrics(run.metrics_file))
    validation = [m["eval_loss"] for m in metrics if "eval_loss" in m]
    assert len(validation) == 3 and validation[-1] < validation[0]
    assert quantised_base(run.path) == (quantization, "float32")
    assert quantised_base(run.adapter) == (quantization, "auto")
    provenance = run.provenance()
    plain = Recipe(**quantised_settings | {"quantization": None, "output_dir": str(run.path) + "-plain"})
    assert provenance["parameters"] == train(plain).provenance()["parameters"]

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # an adapter on another base warns
        for path in (run.path, run.adapter):
            tuned = load_tuned(path, dtype="float32", device="cpu")
            layers = [m for m in tuned.model.modules() if isinstance(m, SpectralLinear)]
            assert {quantization_of(m.get_base_layer()) for m in layers} == {quantization} and len(layers) == 6


@pytest.mark.slow
@each_quantization
def test_a_run_goes_on_where_it_stopped(quantised_settings, quantization, tmp_path):
    steps = {"save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "constant"}
    whole = train(Recipe(**quantised_settings | steps | {"output_dir": str(tmp_path / "whole")}))
    stopped = RunFolder(tmp_path / "stopped")
    train(Recipe(**quantised_settings | steps | {"output_dir": str(stopped.path)}))
    (stopped.path / "checkpoint-6" / "trainer_state.json").unlink()
    train(Recipe(**quantised_settings | steps | {"output_dir": str(stopped.path)}), resume=True)
    weights = [(r.adapter / "adapter_model.safetensors").read_bytes() for r in (whole, stopped)]
    assert weights[0] == weights[1]


def test_transformers_own_names_mean_the_same(settings):
    assert Recipe(**settings, load_in_4bit=True).base_quantization == "bnb-4bit"
    assert Recipe(**settings, load_in_8bit=True).base_quantization == "bnb-8bit"
    assert Recipe(**settings).base_quantization is None
    allowed = Recipe.model_fields["quantization"].annotation
    assert all(Recipe(**settings, quantization=q).base_quantization == q for q in QUANTIZATIONS)
    assert json.dumps(str(allowed)).count("bnb-") + json.dumps(str(allowed)).count("torchao-") == len(QUANTIZATIONS)


@pytest.mark.parametrize("method", ["lora", "dora", "vera", "adalora"])
def test_pefts_own_methods_train_on_a_4_bit_base(settings, method):
    skip_unless_installed("bnb-4bit")
    over = {"method": method, "quantization": "bnb-4bit", "val_set_size": 4, "eval_strategy": "steps", "eval_steps": 2}
    run = train(Recipe(**settings | over | {"learning_rate": 2e-2, "lora_alpha": None if method == "vera" else 8.0}))
    validation = [m["eval_loss"] for m in read_metrics(run.metrics_file) if "eval_loss" in m]
    assert validation[-1] < validation[0]
    assert quantised_base(run.path)[0] == "bnb-4bit"
    load_tuned(run.path)

"""A learning rate matched to another method's: what it comes to, where it is written, and that a resume keeps it."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from milora.errors import MiloraError
from milora.recipes import load_recipe
from milora.recipes.schema import Recipe
from milora.runs import RunFolder, read_metrics
from milora.training.train import train

MATCH = {"match": "lora", "at": 2e-3}


@pytest.fixture
def weights(tiny_llama) -> list[torch.Tensor]:
    """The weights that the recipe adapts."""
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float64)
    return [m.weight.detach() for n, m in model.named_modules() if n.endswith(("q_proj", "v_proj", "down_proj"))]


def rates(run: RunFolder) -> list[float]:
    return [m["learning_rate"] for m in read_metrics(run.metrics_file) if "learning_rate" in m]


def lora(weights, r: int = 4) -> float:
    """||dW||_F / lr over all weights, by hand: s sqrt(out r / 3), s = 2."""
    return math.sqrt(sum(4 * W.shape[0] * r / 3 for W in weights))


def milora(weights, r: int = 4) -> float:
    """sqrt((out + in) sum of the r smallest singular values), s = 1."""
    return math.sqrt(sum(sum(W.shape) * float(torch.linalg.svdvals(W)[-r:].sum()) for W in weights))


def test_the_rate_is_what_the_formula_says_and_training_follows_it(settings, weights):
    settings |= {"lr_scheduler_type": "constant", "learning_rate": MATCH}
    run = train(Recipe(**settings))
    expected = 2e-3 * lora(weights) / milora(weights)
    written = run.provenance()["learning_rate"]
    assert written["resolved"] == pytest.approx(expected, rel=1e-5)
    assert (written["asked"], written["weights"]) == (MATCH, len(weights))
    assert written["predicted"] == pytest.approx(2e-3 * lora(weights), rel=1e-9)
    assert written["per_rate"]["own"] == pytest.approx(milora(weights), rel=1e-5)
    assert len(rates(run)) == 6 and set(rates(run)) == {written["resolved"]}
    assert run.recipe().learning_rate.model_dump() == MATCH


@pytest.mark.parametrize(
    ("method", "match", "own"),
    [
        ("lora", "milora", lambda W: (lora(W) * 1.0, milora(W))),
        ("full", "lora", lambda W: (math.sqrt(sum(w.numel() for w in W)), lora(W))),
        ("mica", "full", lambda W: (math.sqrt(sum(4 * w.shape[1] for w in W)), math.sqrt(sum(w.numel() for w in W)))),
    ],
)
def test_any_two_methods_are_matched(settings, weights, full, method, match, own):
    settings |= full | {"lora_r": 4, "target_modules": settings["target_modules"]} if method == "full" else {}
    settings |= {"method": method, "lora_alpha": None, "learning_rate": {"match": match, "at": 1e-3}, "max_steps": 1}
    written = train(Recipe(**settings)).provenance()["learning_rate"]
    mine, other = own(weights)
    # LoRA's own A is drawn, and near its expectation only.
    assert written["resolved"] == pytest.approx(1e-3 * other / mine, rel=0.1 if method == "lora" else 1e-5)


@pytest.mark.slow
def test_first_steps_are_as_long_as_those_matched(settings, tmp_path):
    moved = {}
    constant = {"lr_scheduler_type": "constant", "lora_dropout": 0.0, "max_steps": 2}
    for method, rate in (("lora", MATCH["at"]), ("pissa", MATCH), ("lora_xs", MATCH)):
        out = tmp_path / method
        recipe = settings | constant | {"method": method, "learning_rate": rate, "output_dir": str(out)}
        moved[method] = change(train(Recipe(**recipe)))
    assert moved["pissa"] == pytest.approx(moved["lora"], rel=0.25)
    assert moved["lora_xs"] == pytest.approx(moved["lora"], rel=0.25)


def change(run: RunFolder) -> float:
    """||dW||_F over all adapted weights, from the exported LoRA."""
    tensors = load_file(run.path / "adapter_model.safetensors")
    scale = json.loads((run.path / "adapter_config.json").read_text())
    s = scale["lora_alpha"] / scale["r"]
    pairs = [(tensors[n.replace("lora_A", "lora_B")], A) for n, A in tensors.items() if "lora_A" in n]
    return math.sqrt(sum(float((s * B @ A).norm()) ** 2 for B, A in pairs))


def test_a_run_that_goes_on_keeps_its_rate(settings, tmp_path):
    settings |= {"learning_rate": MATCH, "save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    whole = train(Recipe(**settings | {"output_dir": str(tmp_path / "whole")}))
    part = train(Recipe(**settings))
    (part.path / "checkpoint-2" / "trainer_state.json").unlink()
    # A rate that was resolved on another machine may differ in its last bits: it is the run's all the same.
    record = part.provenance()
    record["learning_rate"]["resolved"] *= 1 + 1e-12
    part.write_provenance(record)
    again = train(Recipe(**settings), resume=True)
    assert again.provenance()["learning_rate"] == record["learning_rate"]
    assert rates(again) == rates(whole) and len(rates(again)) == 2
    with pytest.raises(MiloraError, match="another recipe: learning_rate was"):
        train(Recipe(**settings | {"learning_rate": MATCH | {"at": 1e-3}}), resume=True)


def test_overwriting_resolves_anew(settings):
    settings |= {"learning_rate": MATCH, "max_steps": 1}
    run = train(Recipe(**settings))
    record = run.provenance()
    right = record["learning_rate"]["resolved"]
    record["learning_rate"]["resolved"] = 5.0
    run.write_provenance(record)
    assert train(Recipe(**settings), overwrite=True).provenance()["learning_rate"]["resolved"] == right


def test_a_number_is_left_alone(settings):
    run = train(Recipe(**settings | {"max_steps": 1}))
    assert "learning_rate" not in run.provenance()


def test_what_cannot_be_matched_is_refused(settings):
    for change_, why in (
        ({"method": "vera", "lora_alpha": None}, "first steps: adapter 'default' has no linear layer"),
        ({"learning_rate": {"match": "vera", "at": 1e-3}}, "first steps: got vera, which are not predicted"),
        ({"learning_rate": {"match": "nothing", "at": 1e-3}}, "method: got 'nothing'"),
    ):
        with pytest.raises(MiloraError, match=why):
            train(Recipe(**settings | {"learning_rate": MATCH} | change_))


def test_the_recipe_says_it_in_one_line(settings):
    read = load_recipe(None, settings | {"learning_rate": "{match: lora, at: 3e-4}"})
    assert (read.learning_rate.match, read.learning_rate.at) == ("lora", 3e-4)

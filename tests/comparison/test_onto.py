"""What a base has learnt, asked on another model: W = W_onto + (W_tuned - W_base)."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from milora.adapters.merge import merge
from milora.analysis import forgetting, read_text
from milora.comparison.bench import Bench
from milora.comparison.engine import compare
from milora.comparison.load import check_grid
from milora.comparison.retention import retention
from milora.comparison.tuned import other_base, tuned_at
from milora.errors import MiloraError
from milora.evaluation import evaluate
from milora.models.load import load_model, load_tokenizer
from milora.recipes import load_recipe
from milora.runs.tuned import load_tuned
from milora.training.shared_base import SharedBase
from milora.training.train import train

IDS = torch.arange(3, 43)[None]  # (1, 40)


def keys(tiny_llama, sums, output, **changes):
    return {
        "model_name_or_path": str(tiny_llama), "dataset": str(sums / "rows.jsonl"), "output_dir": str(output),
        "method": "milora", "lora_r": 4, "lora_dropout": 0.0, "target_modules": ["q_proj", "down_proj"],
        "dtype": "float32", "device": "cpu", "max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-2,
        "warmup_steps": 0, "eval_strategy": "no", "save_strategy": "no", "seed": 0, **changes,
    }  # fmt: skip


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


def by_hand(run, tiny_llama, tiny_instruct):
    """The instruct model with the difference added to each parameter."""
    tuned, base, onto = (load_model(place, dtype="float32") for place in (tiny_llama, tiny_llama, tiny_instruct))
    if run.model.is_dir():
        tuned = load_model(run.model, dtype="float32")
    else:
        tuned = PeftModel.from_pretrained(tuned, run.own_adapter()).merge_and_unload()
    after, before = dict(tuned.named_parameters()), dict(base.named_parameters())
    with torch.no_grad():
        for name, W in onto.named_parameters():
            W += after[name] - before[name]
    return onto.eval()


@pytest.mark.parametrize(
    ("method", "settings"),
    [("milora", {}), ("mica", {}), ("milora", {"magnitude": True}), ("svf", {}), ("lora", {}), ("dora", {}),
     ("svft", {"pattern": "banded", "d": 2}), ("adalora", {"tinit": 0, "tfinal": 1}), ("vera", {}), ("full", {})],
)  # fmt: skip
def test_the_other_model_carries_the_change_and_stays_as_it_is(
    tiny_llama, tiny_instruct, sums, tmp_path, method, settings
):
    recipe = load_recipe(None, keys(tiny_llama, sums, tmp_path / "run", method=method, method_settings=settings))
    run, base, onto = train(recipe), SharedBase(recipe), other_base(recipe, str(tiny_instruct))
    before = logits(onto.model)
    wanted = logits(by_hand(run, tiny_llama, tiny_instruct))
    with tuned_at(run, None, recipe, base, onto) as (model, base_model):
        torch.testing.assert_close(logits(model), wanted, atol=2e-5, rtol=1e-5)
        assert (wanted - before).abs().max() > 1e-4
        assert base_model is onto.model and torch.equal(logits(base_model), before)
        # Its own settings, not the base's.
        assert (
            model.config.rope_parameters["rope_theta"] == 50_000 and model.generation_config.repetition_penalty == 1.5
        )
    assert torch.equal(logits(base.model), logits(load_model(tiny_llama, dtype="float32")))


@pytest.mark.parametrize(
    ("changes", "because"),
    [({"modules_to_save": ["lm_head"]}, "got modules_to_save"), ({"bias": "all"}, "got bias all"),
     ({"quantization": "torchao-int8"}, "got a base quantised as torchao-int8")],
)  # fmt: skip
def test_what_is_no_change_of_linear_weights_is_refused_before_training(small, tiny_instruct, changes, because):
    small["base"] |= changes
    small["arms"] = small["arms"][:1]
    measure = small["measure"] | {"onto": str(tiny_instruct)}
    with pytest.raises(MiloraError, match=f"^onto: {because}"):
        compare(check_grid(small | {"measure": measure}))
    assert not Path(small["output_dir"]).exists()


def test_a_model_of_other_shapes_or_none_is_refused_before_training(small, tiny_llava, tiny_llama, tmp_path):
    for onto, because in ((tiny_llava, "is None in|is .* in"), (tmp_path / "none", "does not exist|no folder|not a")):
        measure = small["measure"] | {"onto": str(onto)}
        with pytest.raises(MiloraError, match=because):
            compare(check_grid(small | {"measure": measure}))
        assert not list((Path(small["output_dir"]) / "runs").glob("*"))


def test_full_fine_tuning_of_another_base_is_refused(tiny_llama, tiny_instruct, sums, tmp_path):
    run = train(load_recipe(None, keys(tiny_llama, sums, tmp_path / "run", method="full", learning_rate=1e-4)))
    other = load_recipe(None, keys(tiny_instruct, sums, tmp_path / "other", method="full"))
    onto = other_base(other, str(tiny_llama))
    with pytest.raises(MiloraError, match="was trained on a base with fingerprint"):  # noqa: SIM117
        with tuned_at(run, None, run.recipe(), SharedBase(other), onto):
            pass


def test_a_run_that_wrote_into_its_base_is_measured_too(tiny_llama, sums, tmp_path):
    settings = {"init_lora_weights": "pissa"}
    recipe = load_recipe(None, keys(tiny_llama, sums, tmp_path / "run", method="lora", method_settings=settings))
    run, base = train(recipe), SharedBase(recipe)
    wanted = logits(load_tuned(run.path, dtype="float32").model)
    with tuned_at(run, None, recipe, base) as (model, _):
        torch.testing.assert_close(logits(model), wanted, atol=2e-5, rtol=1e-5)
    assert torch.equal(logits(base.model), logits(load_model(tiny_llama, dtype="float32")))


def test_rates_are_chosen_by_losses_of_one_model(small, tiny_instruct):
    small["arms"] = [{"label": "lora", "method": "lora", "learning_rate": [1e-4, 3e-2]}]
    small["seeds"] = [0]
    compare(check_grid(small))
    asked = check_grid(small | {"measure": small["measure"] | {"onto": str(tiny_instruct)}})
    compare(asked)
    folders = sorted((Path(small["output_dir"]) / "runs").iterdir())
    assert [json.loads((f / "measured.json").read_text())["settings"]["onto"] for f in folders] == [
        str(tiny_instruct)
    ] * 2


def test_another_process_is_not_sent_the_model(small, tiny_instruct, sums, tmp_path, tiny_llama):
    grid = check_grid(small | {"measure": small["measure"] | {"onto": str(tiny_instruct)}})
    bench, recipe = Bench(grid, {}), load_recipe(None, keys(tiny_llama, sums, tmp_path / "run"))
    size = len(pickle.dumps(bench))
    assert bench.onto(recipe) is bench.onto(recipe) is not None
    assert len(pickle.dumps(bench)) == size
    first = bench.onto(recipe)
    bench.release()
    assert bench.onto(recipe) is not first


def test_a_grid_asks_the_other_model(small, sums, tiny_llama, tiny_instruct, tmp_path):
    small["base"]["learning_rate"] = 0.03
    measure = small["measure"] | {"tasks": ["milora_questions"], "data_dir": str(sums / "questions.jsonl")}
    plain = compare(check_grid(small | {"measure": measure, "seeds": [0], "output_dir": str(tmp_path / "plain")}))
    given = small | {"measure": measure | {"onto": str(tiny_instruct)}, "seeds": [0]}
    found = compare(check_grid(given))
    folder = Path(given["output_dir"])
    (run,) = (folder / "runs").glob("milora-*")
    merge(run, tiny_llama, tmp_path / "merged", onto=tiny_instruct)
    tokenizer = load_tokenizer(tiny_instruct)
    models = [load_model(place, dtype="float32").eval() for place in (tmp_path / "merged", tiny_instruct)]
    moved = forgetting(models[0], tokenizer, read_text(sums / "text.txt"), base_model=models[1], block=32,
                       max_tokens=128, batch_size=4)  # fmt: skip
    arm = next(arm for arm in found["arms"] if arm["label"] == "milora")
    assert arm["metrics"]["kl"]["mean"] == pytest.approx(moved.kl, rel=1e-3)
    base = json.loads((folder / "base" / "eval" / "results.json").read_text())["scores"]
    alone = evaluate(models[1], tokenizer, "milora_questions", data_dir=sums / "questions.jsonl")["scores"]
    assert [(s["metric"], s["value"]) for s in base] == [(s["metric"], s["value"]) for s in alone]
    losses = [c["base"]["base"]["metrics"]["validation_loss"]["mean"] for c in (plain, found)]
    assert abs(losses[0] - losses[1]) > 1e-3
    # The change itself is the same, and analysed on the base.
    changes = [next((Path(c) / "runs").glob("milora-*")) / "analysis.json" for c in (tmp_path / "plain", folder)]
    assert changes[0].read_text() == changes[1].read_text()


def test_a_rescaled_variant_has_no_other_model(small, tiny_instruct):
    measure = small["measure"] | {"onto": str(tiny_instruct)}
    with pytest.raises(MiloraError, match=r"measure\.onto: got it with variant 'big', which is rescaled"):
        check_grid(small | {"measure": measure, "variants": [{"label": "big", "rescale": 2.0}]})


def test_retention_asks_the_other_model(tiny_llama, tiny_instruct, sums, tmp_path):
    run = train(load_recipe(None, keys(tiny_llama, sums, tmp_path / "run")))
    asked = {"tasks": ["milora_questions"], "data_dir": str(sums / "questions.jsonl"), "runs": 1,
             "text": str(sums / "text.txt"), "block": 32, "max_tokens": 128}  # fmt: skip
    start, end = retention(run.path, onto=str(tiny_instruct), **asked)["rows"]
    onto = load_model(tiny_instruct, dtype="float32").eval()
    merge(run.own_adapter(), tiny_llama, tmp_path / "merged", onto=tiny_instruct)
    merged, tokenizer = load_model(tmp_path / "merged", dtype="float32").eval(), load_tokenizer(tiny_instruct)
    moved = forgetting(merged, tokenizer, read_text(sums / "text.txt"), base_model=onto, block=32, max_tokens=128)
    assert start["forgetting"]["kl"] == 0 and end["forgetting"]["kl"] == pytest.approx(moved.kl, rel=1e-3)
    alone = evaluate(onto, tokenizer, "milora_questions", data_dir=sums / "questions.jsonl")["scores"]
    assert [s["value"] for s in start["scores"]] == [s["value"] for s in alone]
    with pytest.raises(MiloraError, match="measured with other onto, onto_fingerprint"):
        retention(run.path, **asked)
    with pytest.raises(MiloraError, match="got base_row and onto"):
        retention(run.path, base_row=start, onto=str(tiny_instruct), **asked)

"""What a base has learnt, asked on another model: W = W_onto + (W_tuned - W_base)."""

import json
from pathlib import Path

import pytest
import torch

from milora.adapters.merge import merge
from milora.analysis import forgetting, read_text
from milora.comparison.engine import compare
from milora.comparison.load import check_grid
from milora.comparison.retention import retention
from milora.comparison.tuned import other_base, tuned_at
from milora.errors import MiloraError
from milora.evaluation import evaluate
from milora.models.load import load_model, load_tokenizer
from milora.recipes import load_recipe
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


def by_hand(run, tiny_llama, tiny_instruct, folder):
    """The instruct model with the difference added to its weights, whole."""
    if run.model.is_dir():
        models = [load_model(place, dtype="float32") for place in (run.model, tiny_llama, tiny_instruct)]
        tuned, base, onto = (dict(model.named_parameters()) for model in models)
        with torch.no_grad():
            for name, W in onto.items():
                W += tuned[name] - base[name]
        return models[2].eval()
    merge(run.own_adapter(), tiny_llama, folder, onto=tiny_instruct)
    return load_model(folder, dtype="float32").eval()


@pytest.mark.parametrize("method", ["milora", "mica", "svf", "lora", "full"])
def test_the_other_model_carries_the_change_and_is_given_back(tiny_llama, tiny_instruct, sums, tmp_path, method):
    whole = {"method_settings": {"save_bases": True}} if method == "svf" else {}
    recipe = load_recipe(None, keys(tiny_llama, sums, tmp_path / "run", method=method, **whole))
    run, base, onto = train(recipe), SharedBase(recipe), other_base(recipe, str(tiny_instruct))
    before = logits(onto.model)
    wanted = logits(by_hand(run, tiny_llama, tiny_instruct, tmp_path / "merged"))
    with tuned_at(run, None, recipe, base, onto) as (model, base_model):
        torch.testing.assert_close(logits(model), wanted, atol=2e-5, rtol=1e-5)
        assert (wanted - before).abs().max() > 1e-3
        untouched = logits(base_model) if base_model is not None else None
        if untouched is None:
            with model.disable_adapter():
                untouched = logits(model)
        assert torch.equal(untouched, before)
    assert torch.equal(logits(onto.model), before)


def test_what_is_no_sum_on_the_weights_is_refused(tiny_llama, tiny_instruct, sums, tmp_path):
    def refused(because, **changes):
        recipe = load_recipe(None, keys(tiny_llama, sums, tmp_path / because[:8], **changes))
        run, base, onto = train(recipe), SharedBase(recipe), other_base(recipe, str(tiny_instruct))
        with pytest.raises(MiloraError, match=f"^onto: .*{because}"), tuned_at(run, None, recipe, base, onto):
            pass
        return run, onto

    refused("magnitude.*allowed changes that are a sum", method_settings={"magnitude": True})
    refused("lm_head.* whole", modules_to_save=["lm_head"])
    run, onto = refused("saved without its bases", method="svf", method_settings={"save_bases": False})
    other = load_recipe(None, keys(tiny_instruct, sums, tmp_path / "other"))
    with pytest.raises(MiloraError, match=r"^onto: .* trained on a base with fingerprint"):  # noqa: SIM117
        with tuned_at(run, None, run.recipe(), SharedBase(other), onto):
            pass


def test_another_shape_or_a_quantised_base_is_refused(tiny_llama, tiny_llava, sums, tmp_path):
    recipe = load_recipe(None, keys(tiny_llama, sums, tmp_path / "run", method="full"))
    run, base = train(recipe), SharedBase(recipe)
    with pytest.raises(MiloraError, match=r"onto: .* not there or of another shape"):  # noqa: SIM117
        with tuned_at(run, None, recipe, base, other_base(recipe, str(tiny_llava))):
            pass
    quantised = load_recipe(None, keys(tiny_llama, sums, tmp_path / "q", quantization="torchao-int8"))
    with pytest.raises(MiloraError, match="onto: got a base quantised as torchao-int8"):
        other_base(quantised, str(tiny_llama))


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
    with pytest.raises(MiloraError, match="measured with other onto_fingerprint"):
        retention(run.path, **asked)

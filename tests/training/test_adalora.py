"""AdaLoRA's ranks really fall, its regulariser really counts, and its checkpoints are whole."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from milora.errors import MiloraError
from milora.recipes.schema import Recipe
from milora.runs import RunFolder, read_metrics
from milora.training.adalora import orthogonality, schedule
from milora.training.train import train

LAYERS = 2 * 3  # q, v and down of two layers


@pytest.fixture
def budget(settings) -> dict:
    settings["method_settings"] = {"tinit": 2, "tfinal": 3, "deltaT": 1, "beta1": 0.5, "beta2": 0.5}
    return settings | {"method": "adalora", "lora_r": 2, "max_steps": 12, "lora_dropout": 0.1, "learning_rate": 1e-2}


def weights(run):
    return load_file(run.path / "adapter_model.safetensors")


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_the_ranks_fall_to_the_target_and_the_log_shows_it(budget):
    from peft import PeftModel

    run = train(Recipe(**budget))
    ranks = [record["rank_budget"] for record in read_metrics(run.metrics_file) if "rank_budget" in record]
    assert len(ranks) == 12
    assert ranks[:2] == [3 * LAYERS] * 2  # init_r = 1.5 * 2 until tinit
    assert ranks[-4:] == [2 * LAYERS] * 4  # target_r for the last tfinal steps and the one that ends the fall
    assert ranks == sorted(ranks, reverse=True)
    config = json.loads((run.path / "adapter_config.json").read_text())
    assert config["total_step"] == 12
    assert sum(sum(kept) for kept in config["rank_pattern"].values()) == 2 * LAYERS
    lambdas = [tensor for name, tensor in weights(run).items() if "lora_E" in name]
    assert len(lambdas) == LAYERS and sum(len(tensor) for tensor in lambdas) == 2 * LAYERS
    base = AutoModelForCausalLM.from_pretrained(budget["model_name_or_path"])
    tokens = torch.tensor([list(range(3, 40))])
    with torch.no_grad():
        before = base.eval()(tokens).logits
        assert not torch.equal(PeftModel.from_pretrained(base, run.path).eval()(tokens).logits, before)


def test_the_regulariser_pulls_towards_orthogonal_factors(budget):
    # Read before the first pruning, so that all factors have one shape.
    own = budget["method_settings"] | {"tinit": 6}
    distances = []
    for weight in (0.5, 0.0):
        settings = budget | {"method_settings": own | {"orth_reg_weight": weight}, "max_steps": 12}
        run = train(Recipe(**settings | {"save_strategy": "steps", "save_steps": 6}), overwrite=True)
        tensors = load_file(run.path / "checkpoint-6" / "adalora_state.safetensors")
        P = [t for name, t in tensors.items() if name.startswith("weight.") and "lora_B" in name]  # each (out, 3)
        assert len(P) == LAYERS
        distances.append(sum(torch.linalg.norm(p.T @ p - torch.eye(3)).item() for p in P))
    assert distances[0] < 0.9 * distances[1]


def test_the_regulariser_is_the_one_of_peft(tiny_llama):
    from peft import AdaLoraConfig, get_peft_model

    torch.manual_seed(0)
    config = AdaLoraConfig(target_modules=["q_proj"], total_step=10, orth_reg_weight=0.3, task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llama), config)
    tokens = torch.tensor([list(range(3, 40))])
    with_it = model(tokens, labels=tokens).loss
    config.orth_reg_weight = 0.0
    without = model(tokens, labels=tokens).loss
    config.orth_reg_weight = 0.3
    torch.testing.assert_close(orthogonality(model), with_it - without, rtol=1e-5, atol=1e-6)


# Before the fall of the ranks ends, about its end, after it.
@pytest.mark.parametrize("stop", [pytest.param(4, marks=pytest.mark.slow), 8, pytest.param(10, marks=pytest.mark.slow)])
def test_resume_ends_in_the_same_bits(budget, stop):
    budget |= {"save_strategy": "steps", "save_steps": 2, "save_total_limit": None}
    run = train(Recipe(**budget))
    whole = weights(run)
    assert (run.path / f"checkpoint-{stop}" / "adalora_state.safetensors").is_file()
    for later in run.checkpoints():
        if int(later.name.split("-")[1]) > stop:
            shutil.rmtree(later)
    (run.path / "adapter_model.safetensors").unlink()
    train(Recipe(**budget), resume=True)
    assert same(weights(run), whole)


def test_what_trains_beside_the_triplets_comes_back_too(budget, tmp_path):
    budget |= {"modules_to_save": ["lm_head"], "save_strategy": "steps", "save_steps": 4, "save_total_limit": None}
    whole = train(Recipe(**budget))
    kept = whole.path / "checkpoint-4"
    assert kept.is_dir()
    resumed = RunFolder(shutil.copytree(whole.path, tmp_path / "again"))
    for name in ("checkpoint-8", "checkpoint-12"):
        shutil.rmtree(resumed.path / name)
    again = train(Recipe(**budget | {"output_dir": str(resumed.path)}), resume=True)
    heads = [name for name in weights(whole) if "lm_head" in name]
    assert heads and same(weights(whole), weights(again))


def test_the_best_checkpoint_comes_back_with_its_ranks(budget, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"prompt": f"{i}?", "completion": "%$#@&*^%$ "}) + "\n" for i in range(4)))
    budget |= {
        "eval_dataset": str(other), "eval_strategy": "steps", "eval_steps": 1,
        "save_strategy": "steps", "save_steps": 1, "save_total_limit": None,
        "load_best_model_at_end": True, "learning_rate": 0.1,
    }  # fmt: skip
    run = train(Recipe(**budget))
    losses = {r["step"]: r["eval_loss"] for r in read_metrics(run.metrics_file) if "eval_loss" in r}
    best = min(losses, key=losses.__getitem__)
    assert best < 12, losses
    assert same(weights(run), load_file(run.path / f"checkpoint-{best}" / "adapter_model.safetensors"))


def test_the_schedule_is_scaled_to_the_run():
    assert schedule(1000, 8, {}) == {
        "target_r": 8, "init_r": 12, "total_step": 1000, "tinit": 100, "tfinal": 333, "deltaT": 11,
    }  # fmt: skip
    given = {"init_r": 20, "target_r": 4, "tinit": 7, "tfinal": 9, "deltaT": 3, "beta1": 0.9}
    assert schedule(1000, 8, given) == given | {"total_step": 1000}
    with pytest.raises(MiloraError, match="allowed init_r > target_r"):
        schedule(1000, 8, {"init_r": 8})
    with pytest.raises(MiloraError, match="got tinit 50, tfinal 50 and 100 steps"):
        schedule(100, 8, {"tinit": 50, "tfinal": 50})


@pytest.mark.parametrize(("steps", "given"), [(1, {}), (4, {"tfinal": 3})])
def test_an_allocation_without_an_importance_before_it_is_refused(budget, steps, given):
    short = Recipe(**budget | {"max_steps": steps, "method_settings": given})
    with pytest.raises(MiloraError, match=rf"and {steps} steps, allowed .* tfinal \+ 2 <= steps"):
        train(short)


def test_the_shortest_run_trains(budget):
    assert train(Recipe(**budget | {"max_steps": 2, "method_settings": {}})).own_adapter()

"""The example of reinforcement does what its first lines say: the reward, the advantage, the KL term, the gradient."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from milora.methods import METHODS

EXAMPLE = Path(__file__).parents[2] / "examples" / "svf_reinforce.py"
BETA = 0.3


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("svf_reinforce", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def words(tiny_llama, tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("reinforce")
    rows = [
        {"question": f"What is {i} plus {i}?", "answer": f"{i}+{i}=<<{i}+{i}={2 * i}>>\n#### {2 * i}"} for i in range(8)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = {
        "model": tiny_llama, "data": folder / "rows.jsonl", "output": folder / "out", "beta": BETA, "steps": 2,
        "batch": 8, "accumulate": 1, "max_completion_length": 6, "learning_rate": 0.05, "max_grad_norm": 0,
    }  # fmt: skip
    return ["--cpu", *(str(w) for name, value in flags.items() for w in (f"--{name}", value))]


def test_reward_is_plus_or_minus_one_by_the_last_number(example):
    said = [
        "so 3 and 4 make 7",
        "The answer is: 1,234.0",
        "7 or 8",
        "no idea",
        [{"role": "assistant", "content": "7."}],
    ]
    assert example.reward(said, ["7", "1234", "7", "7", "7"]) == [1.0, 1.0, -1.0, -1.0, 1.0]


def test_rows_of_gsm8k_become_prompts(example, shared_data, tiny_llama):
    from transformers import AutoTokenizer

    file = shared_data / "math" / "gsm8k_train.jsonl.gz"
    rows = example.prompts(file, AutoTokenizer.from_pretrained(tiny_llama), 3)
    assert rows["gold"][:1] == ["72"] and len(rows) == 3
    assert rows[0]["prompt"][0]["content"].endswith("How many clips did Natalia sell altogether in April and May?")


def of_each_completion(model, inputs) -> torch.Tensor:  # (completions,)
    """log pi of each completion, summed over its tokens up to the end mark."""
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    attended = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    length = inputs["completion_ids"].shape[1]
    logits = model.base_model.model.model(input_ids=ids, attention_mask=attended).last_hidden_state
    logps = model.base_model.model.lm_head(logits)[:, -length - 1 : -1].log_softmax(-1)  # (completions, length, vocab)
    taken = logps.gather(-1, inputs["completion_ids"].unsqueeze(-1)).squeeze(-1)
    return (taken * inputs["completion_mask"]).sum(1)


def other_of_the_prompt(inputs) -> torch.Tensor:  # (completions,)
    """Of each completion the index of the other one of its prompt; TRL shuffles them."""
    same = (inputs["prompt_ids"][:, None] == inputs["prompt_ids"][None]).all(-1).fill_diagonal_(False)
    assert (same.sum(1) == 1).all()
    return same.int().argmax(1)


@pytest.mark.slow
def test_the_gradient_is_that_of_the_first_lines(example, words, monkeypatch):
    """In the second step, when z has moved away from 1 and the KL is not zero."""
    seen = []

    def reward(completions, completion_ids, **_):
        return [1.0 if sum(ids) % 2 else -1.0 for ids in completion_ids]

    class Watching(example.QuietRLOOTrainer):
        def _compute_loss(self, model, inputs):
            loss = super()._compute_loss(model, inputs)
            z = [p for p in model.parameters() if p.requires_grad]
            now = of_each_completion(model, inputs)
            with torch.no_grad(), model.disable_adapter():
                base = of_each_completion(model, inputs)
            sums = (inputs["completion_ids"] * inputs["completion_mask"]).sum(1)
            R = 2.0 * (sums % 2) - 1 - BETA * (now.detach() - base)
            A = R - R[other_of_the_prompt(inputs)]  # of two, the reward of the other one is the baseline
            ours = torch.autograd.grad(-(A * now).mean(), z, retain_graph=True)
            theirs = torch.autograd.grad(loss, z, retain_graph=True)
            seen.append({"A": A, "theirs A": inputs["advantages"], "ours": ours, "theirs": theirs, "kl": now - base})
            return loss

    monkeypatch.setattr(example, "reward", reward)
    monkeypatch.setattr(example, "QuietRLOOTrainer", Watching)
    trainer = example.main(words)
    assert len(seen) == 2 and (seen[1]["kl"].abs() > 1e-3).any()
    for step in seen:
        torch.testing.assert_close(step["theirs A"], step["A"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(step["theirs"], step["ours"], rtol=1e-3, atol=1e-6)
        assert max(g.abs().max() for g in step["theirs"]) > 1e-4
    trained = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert len(trained) == 6 and all("spectral_C" in n and p.dtype == torch.float32 for n, p in trained.items())
    assert METHODS[trainer.model.peft_config["default"].method].name == "svf"
    assert all(p.abs().max() > 0.01 for p in trained.values())
    log = [event for event in trainer.state.log_history if "clip_ratio/region_mean" in event]
    assert len(log) == 2 and all(event["clip_ratio/region_mean"] == 0 for event in log)

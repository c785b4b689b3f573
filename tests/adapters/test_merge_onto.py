"""Base plus instruct difference: the change that a base has learnt, on another model's weights."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from adapters.steps import adapt, train_steps
from milora.adapters.merge import merge
from milora.cli.app import main
from milora.errors import MiloraError
from milora.models.weights import stored_tensors


def trained(tiny_llama, method, folder, **settings):
    model = adapt(AutoModelForCausalLM.from_pretrained(tiny_llama), method, **settings)
    train_steps(model, torch.tensor([list(range(3, 40))]))
    model.save_pretrained(folder)
    return folder


def values(folder):
    return {name: tensor.read() for name, tensor in stored_tensors(folder).items()}


@pytest.mark.parametrize("method", ["mica", "milora", "svf"])
def test_it_is_instruct_plus_tuned_minus_base(tiny_llama, tiny_instruct, tmp_path, method):
    adapter = trained(tiny_llama, method, tmp_path / "adapter")
    merged = values(merge(adapter, tiny_llama, tmp_path / "tuned")[0])
    written, in_memory = merge(adapter, tiny_llama, tmp_path / "out", onto=tiny_instruct)
    assert in_memory == ""
    found, base, other = values(written), values(tiny_llama), values(tiny_instruct)
    assert found.keys() == other.keys()
    moved = [name for name in base if not torch.equal(merged[name], base[name])]
    assert len(moved) >= 4
    for name, W in found.items():
        # theta_FT(base) + (theta_instruct - theta_base)
        wanted = (merged[name].double() + other[name].double() - base[name].double()).float()
        torch.testing.assert_close(W, wanted, atol=1e-6, rtol=0)
        assert torch.equal(W, other[name]) == (name not in moved)
    assert AutoModelForCausalLM.from_pretrained(written).config.vocab_size > 0


def test_what_is_no_change_of_this_base_is_refused(tiny_llama, tiny_instruct, tmp_path):
    adapter = trained(tiny_llama, "mica", tmp_path / "mica")
    with pytest.raises(MiloraError, match="made on a base with fingerprint"):
        merge(adapter, tiny_instruct, tmp_path / "out", onto=tiny_llama)
    magnitude = trained(tiny_llama, "milora", tmp_path / "dora", magnitude=True)
    with pytest.raises(MiloraError, match="--onto: the adapter has a magnitude"):
        merge(magnitude, tiny_llama, tmp_path / "out", onto=tiny_instruct)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    pissa = LoraConfig(r=2, init_lora_weights="pissa", target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(model, pissa).save_pretrained(tmp_path / "pissa")
    with pytest.raises(MiloraError, match=r"--onto: .*rewrites the base weights"):
        merge(tmp_path / "pissa", tiny_llama, tmp_path / "out", onto=tiny_instruct)
    head = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    get_peft_model(model, head).save_pretrained(tmp_path / "head")
    with pytest.raises(MiloraError, match=r"--onto: the adapter holds .*lm_head.*whole"):
        merge(tmp_path / "head", tiny_llama, tmp_path / "out", onto=tiny_instruct)
    assert not (tmp_path / "out").exists()


def test_the_command(tiny_llama, tiny_instruct, tmp_path, capsys):
    adapter = trained(tiny_llama, "mica", tmp_path / "mica")
    given = ["merge", str(adapter), "--model_name_or_path", str(tiny_llama), "--onto", str(tiny_instruct)]
    assert main([*given, "--output", str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["onto"] == str(tiny_instruct)
    assert (tmp_path / "out" / "tokenizer.json").is_file()

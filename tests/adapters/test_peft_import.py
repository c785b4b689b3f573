"""Adapters trained by PEFT, brought in: the same logits, and what trains on."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, VeraConfig, get_peft_model
from safetensors.torch import load_file

from adapters.steps import logits, train_steps
from milora.adapters import load_adapter
from milora.adapters.agreement import import_agreement
from milora.adapters.export import write_lora
from milora.adapters.peft_import import import_adapter
from milora.errors import MiloraError

ROUNDING = 3e-6


def trained(base, ids, folder, **settings):
    """An adapter of PEFT's after a few steps, saved; its start beside it; and its logits."""
    arguments = {"r": 8, "target_modules": "all-linear", **settings}
    model = get_peft_model(base(), LoraConfig(**arguments))
    start = model.peft_config["default"].init_lora_weights
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(folder / "start")
    model.peft_config["default"].init_lora_weights = start
    train_steps(model, ids)
    model.save_pretrained(folder / "theirs")
    return folder / "theirs", logits(model, ids)


PATTERNS = {"rank_pattern": {"q_proj": 4, "nosuch": 2}, "alpha_pattern": {"v_proj": 3}}


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ({}, "mica"),
        ({"lora_alpha": 12, "init_lora_weights": "gaussian", "use_rslora": True, **PATTERNS}, "mica"),
        ({"init_lora_weights": "mica", "lora_alpha": 16}, "mica"),
        ({"init_lora_weights": "pissa", "lora_alpha": 16}, "pissa"),
        ({"init_lora_weights": "pissa", "use_rslora": True, **PATTERNS}, "pissa"),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, "mica"),
    ],
    ids=str,
)
def test_it_is_the_adapter_that_peft_trained(tiny_llama, base, ids, tmp_path, settings, method):
    theirs, expected = trained(base, ids, tmp_path, **settings)
    done = import_adapter(theirs, tiny_llama, tmp_path / "ours")
    assert done.method == method
    ours = load_adapter(base(), tmp_path / "ours", is_trainable=True)
    assert float((logits(ours, ids) - expected).abs().max()) < ROUNDING
    # PEFT, which makes PiSSA's start anew, says the same of its own file.
    again = PeftModel.from_pretrained(base(), theirs).eval()
    assert float((logits(ours, ids) - logits(again, ids)).abs().max()) < ROUNDING
    compared = import_agreement(theirs, base(), tmp_path / "ours")
    assert compared.largest < ROUNDING < 1e-2 < compared.moved
    before = logits(ours, ids)
    train_steps(ours, ids, steps=1)
    assert not torch.equal(logits(ours, ids), before)
    fields = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert len(fields["base_fingerprint"]) == 64 and fields["base_precision"] == "bfloat16"
    if "modules_to_save" not in settings:
        write_lora(tmp_path / "ours", None, tmp_path / "out")
        exported = PeftModel.from_pretrained(base(), tmp_path / "out")
        assert float((logits(exported, ids) - expected).abs().max()) < ROUNDING


def test_a_pissa_starts_from_the_largest_triplets_with_its_own_signs(tiny_llama, base, ids, tmp_path):
    theirs, _ = trained(base, ids, tmp_path, init_lora_weights="pissa", lora_alpha=16)
    done = import_adapter(theirs, tiny_llama, tmp_path / "ours")
    assert 0.01 < done.start_distance < 0.6
    parts = load_file(tmp_path / "ours" / "adapter_model.safetensors")
    start = load_file(tmp_path / "start" / "adapter_model.safetensors")
    for name in (n.removesuffix(".lora_A.weight") for n in start if n.endswith("lora_A.weight")):
        assert torch.allclose(parts[f"{name}.spectral_L0"], start[f"{name}.lora_B.weight"], atol=2e-4)
        assert torch.allclose(parts[f"{name}.spectral_R0"], start[f"{name}.lora_A.weight"], atol=2e-4)


def test_a_start_at_hand_is_exact_and_the_only_way_for_a_random_one(tiny_llama, base, ids, tmp_path):
    for name, start in (("fixed", "pissa"), ("random", "pissa_niter_4")):
        theirs, expected = trained(base, ids, tmp_path / name, init_lora_weights=start)
        import_adapter(theirs, tiny_llama, tmp_path / name / "ours", initial=tmp_path / name / "start")
        ours = load_adapter(base(), tmp_path / name / "ours")
        assert float((logits(ours, ids) - expected).abs().max()) < 1e-6
    with pytest.raises(MiloraError, match=r"'pissa_niter_4', a randomised start.* allowed with --initial"):
        import_adapter(theirs, tiny_llama, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    # PEFT's own reload of it is another adapter, unless the process's generator stands where it stood: that is why.
    torch.manual_seed(1)
    again = PeftModel.from_pretrained(base(), theirs).eval()
    assert float((logits(again, ids) - expected).abs().max()) > 1e-3
    with pytest.raises(MiloraError, match=r"initial: .* allowed only with PiSSA"):
        lora, _ = trained(base, ids, tmp_path / "plain")
        import_adapter(lora, tiny_llama, tmp_path / "none", initial=tmp_path / "plain" / "start")


def test_a_pissa_that_peft_converted_is_a_lora(tiny_llama, base, ids, tmp_path):
    model = get_peft_model(base(), LoraConfig(r=8, init_lora_weights="pissa", target_modules=["q_proj", "up_proj"]))
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "start")
    train_steps(model, ids)
    expected = logits(model, ids)
    model.save_pretrained(tmp_path / "theirs", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    assert import_adapter(tmp_path / "theirs", tiny_llama, tmp_path / "ours").method == "mica"
    ours = load_adapter(base(), tmp_path / "ours")
    assert float((logits(ours, ids) - expected).abs().max()) < ROUNDING


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"use_dora": True}, "use_dora is set, allowed a plain LoRA"),
        ({"init_lora_weights": "olora"}, "init_lora_weights is 'olora', which rewrites the base weights"),
        ({"r": 40}, r"r is 40 for model\.layers\.0\.self_attn\.k_proj \(32, 64\), allowed 1 to 32"),
        ({"target_modules": ["embed_tokens"]}, "lora_embedding_A: allowed lora_A"),
    ],
)
def test_what_cannot_come_in_is_one_line(tiny_llama, base, tmp_path, settings, said):
    arguments = {"r": 4, "target_modules": "all-linear", **settings}
    get_peft_model(base(), LoraConfig(**arguments)).save_pretrained(tmp_path / "theirs")
    with pytest.raises(MiloraError, match=said) as caught:
        import_adapter(tmp_path / "theirs", tiny_llama, tmp_path / "ours")
    assert "\n" not in str(caught.value) and not (tmp_path / "ours").exists()


def test_another_kind_or_another_base_is_one_line(tiny_llama, base, ids, tmp_path):
    vera = get_peft_model(base(), VeraConfig(r=4, target_modules=["q_proj"]))
    vera.save_pretrained(tmp_path / "vera")
    with pytest.raises(MiloraError, match="holds a VeraConfig, allowed LoRA, MiCA or PiSSA of PEFT"):
        import_adapter(tmp_path / "vera", tiny_llama, tmp_path / "ours")
    theirs, _ = trained(base, ids, tmp_path, target_modules=["q_proj"])
    other = base()
    other.config.num_hidden_layers = 1
    del other.model.layers[1]
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(MiloraError, match=r"targets: 'model\.layers\.1\.self_attn\.q_proj' matches no linear module"):
        import_adapter(theirs, tmp_path / "other", tmp_path / "ours")

"""The laws of the equation, for every method of the registry: a new method is judged without a test of its own."""

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model

from adapters.steps import adapt, logits, train_steps
from milora.adapters import SpectralConfig, SpectralLinear, export_lora, load_adapter
from milora.methods import METHODS, Choice

DTYPES = [torch.float32, torch.bfloat16]
pytestmark = [pytest.mark.parametrize("method", sorted(METHODS)), pytest.mark.parametrize("dtype", DTYPES, ids=str)]
# Rounding of the two ways of summing, of bfloat16 for logits around 1 and of float32 for the same.
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2e-2}


def test_law_1_the_start_is_the_base(base, ids, method, dtype):
    model = base(dtype)
    before = logits(model, ids)
    adapted = adapt(model, method)
    for training in (False, True):
        assert torch.equal(logits(adapted.train(training), ids), before)


def test_law_2_disabled_is_the_base_at_any_time(base, ids, method, dtype):
    model = base(dtype)
    before = logits(model, ids)
    adapted = adapt(model, method)
    train_steps(adapted, ids)
    trained = logits(adapted, ids)
    assert not torch.equal(trained, before)
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted, ids), before)
    adapted.merge_adapter()
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted, ids), before)
    assert torch.equal(logits(adapted, ids), trained)


def test_law_3_only_the_declared_factors_train(base, ids, method, dtype):
    adapted = adapt(base(dtype), method)
    layers = [m for m in adapted.modules() if isinstance(m, SpectralLinear)]
    assert len(layers) == 14
    trainable = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
    expected = sum(METHODS[method].count(m.out_features, m.in_features, Choice(8, 1.0)) for m in layers)
    assert sum(p.numel() for p in trainable.values()) == expected
    names = {"spectral_C" if factor == "C" else "spectral_d" + factor for factor in METHODS[method].trains}
    assert {n.split(".")[-2] for n in trainable} == names
    frozen = {n: p.detach().clone() for n, p in adapted.named_parameters() if not p.requires_grad}
    start = {n: p.detach().clone() for n, p in trainable.items()}
    train_steps(adapted, ids)
    now = dict(adapted.named_parameters())
    assert all(torch.equal(now[n], p) for n, p in frozen.items())
    assert all(not torch.equal(now[n], p) for n, p in start.items())
    # What set_adapter wakes up must stay frozen where the method says so.
    adapted.set_adapter("default")
    assert {n for n, p in adapted.named_parameters() if p.requires_grad} == set(trainable)


def test_law_4_saved_and_loaded_is_the_same_without_a_decomposition(base, ids, method, dtype, tmp_path, monkeypatch):
    adapted = adapt(base(dtype), method)
    train_steps(adapted, ids)
    trained = logits(adapted, ids)
    adapted.save_pretrained(tmp_path)
    monkeypatch.setattr(torch.linalg, "svd", lambda *a, **k: pytest.fail("a decomposition was run"))
    monkeypatch.setattr(torch, "svd_lowrank", lambda *a, **k: pytest.fail("a decomposition was run"))
    for low_cpu_mem_usage in (False, True):
        loaded = PeftModel.from_pretrained(base(dtype), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
        assert torch.equal(logits(loaded, ids), trained)
    assert torch.equal(logits(load_adapter(base(dtype), tmp_path), ids), trained)


def test_law_5_merged_and_exported_are_the_same_within_rounding(base, ids, method, dtype, tmp_path):
    scaled = {"lora_alpha": 12, "use_rslora": True} if METHODS[method].ranked else {}
    adapted = adapt(base(dtype), method, save_bases=True, **scaled)
    train_steps(adapted, ids)
    trained = logits(adapted, ids)
    weights = {n: p.detach().clone() for n, p in adapted.named_parameters() if "base_layer" in n}
    adapted.merge_adapter()
    assert torch.allclose(logits(adapted, ids), trained, atol=ROUNDING[dtype], rtol=0)
    assert any(not torch.equal(p, weights[n]) for n, p in adapted.named_parameters() if n in weights)
    adapted.unmerge_adapter()
    assert torch.equal(logits(adapted, ids), trained)
    assert all(torch.equal(p, weights[n]) for n, p in adapted.named_parameters() if n in weights)

    adapted.save_pretrained(tmp_path / "own")
    export_lora(tmp_path / "own", None, tmp_path / "lora")
    exported = PeftModel.from_pretrained(base(dtype), tmp_path / "lora")
    assert type(exported.base_model).__name__ == "LoraModel"
    assert torch.allclose(logits(exported, ids), trained, atol=ROUNDING[dtype], rtol=0)

    unloaded = adapted.merge_and_unload()
    assert not any(isinstance(m, SpectralLinear) for m in unloaded.modules())
    assert torch.allclose(logits(unloaded, ids), trained, atol=ROUNDING[dtype], rtol=0)


def test_law_6_one_weight_and_one_seed_give_one_set_of_factors(base, ids, method, dtype):
    threads = torch.get_num_threads()
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        try:
            found.append(adapt(base(dtype), method).state_dict())
        finally:
            torch.set_num_threads(threads)
    assert any(n.endswith("L0.default") for n in found[0])
    for name, first in found[0].items():
        assert torch.allclose(first.float(), found[1][name].float(), atol=1e-4, rtol=0), name


def test_law_7_stopped_and_resumed_is_not_stopped(base, ids, method, dtype, tmp_path):
    def optimizer(model):
        return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)

    def step(model, o):
        model(input_ids=ids, labels=ids).loss.backward()
        o.step()
        o.zero_grad()

    whole = adapt(base(dtype), method, lora_dropout=0.0)
    o = optimizer(whole)
    step(whole, o)
    whole.save_pretrained(tmp_path)
    state = copy.deepcopy(o.state_dict())
    step(whole, o)
    resumed = PeftModel.from_pretrained(base(dtype), tmp_path, is_trainable=True)
    o = optimizer(resumed)
    o.load_state_dict(state)
    step(resumed, o)
    assert torch.equal(logits(resumed, ids), logits(whole, ids))


def test_several_adapters_of_different_methods_live_in_one_model(base, ids, method, dtype):
    model = base(dtype)
    before = logits(model, ids)
    adapted = adapt(model, method)
    train_steps(adapted, ids)
    trained = logits(adapted, ids)
    for other in sorted(METHODS):
        adapted.add_adapter(other, SpectralConfig(method=other, r=4, target_modules=["q_proj", "down_proj"]))
        adapted.set_adapter(other)
        assert torch.equal(logits(adapted, ids), before)
    adapted.set_adapter("default")
    assert torch.equal(logits(adapted, ids), trained)
    adapted.delete_adapter(sorted(METHODS)[0])
    assert torch.equal(logits(adapted, ids), trained)


def test_the_callers_configuration_is_left_as_it_was(base, ids, method, dtype):
    config = SpectralConfig(method=method, r=4, target_modules="all-linear")
    get_peft_model(base(dtype), config)
    assert config.base_fingerprint is None
    assert config.target_modules == "all-linear"

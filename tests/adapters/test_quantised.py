"""The laws on quantised bases, for every method of the registry and every quantisation."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from adapters.quantised import OTHER_IN_TRAIN_MODE, QUANTIZATIONS, quantised
from adapters.steps import adapt, logits, train_steps
from milora.adapters import SpectralLinear, export_lora
from milora.methods import METHODS
from milora.models.quantised import dequantised, quantization_of

pytestmark = pytest.mark.parametrize("quantization", QUANTIZATIONS)
each_method = pytest.mark.parametrize("method", sorted(METHODS))
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@pytest.fixture
def base(tiny_llama, quantization):
    """A fresh tiny Llama in this quantisation."""
    return lambda dtype=torch.float32: quantised(tiny_llama, quantization, dtype)


@each_method
@each_dtype
def test_the_start_is_the_quantised_base_and_disabled_it_is_again(base, ids, method, dtype, quantization):
    model = base(dtype)
    before = {training: logits(model.train(training), ids) for training in (False, True)}
    assert torch.equal(before[True], before[False]) or quantization in OTHER_IN_TRAIN_MODE
    adapted = adapt(model, method)
    layers = [m for m in adapted.modules() if isinstance(m, SpectralLinear)]
    assert len(layers) == 14
    assert {quantization_of(m.get_base_layer()) for m in layers} == {quantization}
    for training, expected in before.items():
        assert torch.equal(logits(adapted.train(training), ids), expected)
    train_steps(adapted, ids)
    assert not torch.equal(logits(adapted, ids), before[False])
    with adapted.disable_adapter():
        for training, expected in before.items():
            assert torch.equal(logits(adapted.train(training), ids), expected)


@each_method
def test_saved_and_loaded_and_exported_it_is_the_same(base, ids, method, tmp_path, quantization, monkeypatch):
    adapted = adapt(base(), method, save_bases=True)
    train_steps(adapted, ids)
    trained = logits(adapted, ids)
    adapted.save_pretrained(tmp_path / "own")
    export_lora(tmp_path / "own", None, tmp_path / "lora")
    monkeypatch.setattr("milora.adapters.start.layer_factors", lambda *a, **k: pytest.fail("it was decomposed"))
    loaded = PeftModel.from_pretrained(base(), tmp_path / "own")
    assert torch.equal(logits(loaded, ids), trained)
    exported = PeftModel.from_pretrained(base(), tmp_path / "lora")
    assert type(exported.base_model).__name__ == "LoraModel"
    assert torch.allclose(logits(exported, ids), trained, atol=3e-2, rtol=0)


@each_method
def test_unmerged_is_as_before_bit_for_bit(base, ids, method, quantization):
    adapted = adapt(base(), method)
    train_steps(adapted, ids)
    trained = logits(adapted, ids)
    layers = [m for m in adapted.modules() if isinstance(m, SpectralLinear)]
    weights = [dequantised(m.get_base_layer()) for m in layers]
    adapted.merge_adapter()
    assert any(not torch.equal(dequantised(m.get_base_layer()), W) for m, W in zip(layers, weights, strict=True))
    assert {quantization_of(m.get_base_layer()) for m in layers} == {quantization}
    assert all(torch.equal(m.unmerged_weight(), W) for m, W in zip(layers, weights, strict=True))
    merged = logits(adapted, ids)
    assert not torch.equal(merged, trained)
    adapted.unmerge_adapter()
    assert all(torch.equal(dequantised(m.get_base_layer()), W) for m, W in zip(layers, weights, strict=True))
    assert torch.equal(logits(adapted, ids), trained)
    adapted.merge_adapter()
    assert torch.equal(logits(adapted, ids), merged)
    adapted.unmerge_adapter()
    assert torch.equal(logits(copy.deepcopy(adapted), ids), trained)
    adapted.to("cpu")  # where bitsandbytes quantises what it takes for not quantised
    assert torch.equal(logits(adapted, ids), trained)


@pytest.mark.slow
def test_in_a_fresh_process_the_logits_are_the_same_to_the_last_bit(base, ids, tiny_llama, quantization, tmp_path):
    adapted = adapt(base(torch.bfloat16), "milora")
    train_steps(adapted, ids)
    adapted.save_pretrained(tmp_path / "own")
    save_file({"ids": ids}, tmp_path / "ids.safetensors")
    script = str(Path(__file__).with_name("fresh_process.py"))
    arguments = (tiny_llama, tmp_path / "own", "bfloat16", tmp_path / "ids.safetensors", tmp_path / "out", quantization)
    done = subprocess.run([sys.executable, script, *map(str, arguments)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert torch.equal(load_file(tmp_path / "out")["logits"], logits(adapted, ids))

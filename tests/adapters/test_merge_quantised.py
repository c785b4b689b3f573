"""Merging into a quantised base, and what it is said to cost."""

import json

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, VeraConfig, get_peft_model

from adapters.quantised import QUANTIZATIONS, quantised
from adapters.steps import adapt, logits, train_steps
from milora.adapters import MergeCost, SpectralLinear, load_adapter, merge_quantised
from milora.adapters.export import write_lora
from milora.cli.app import main
from milora.errors import MiloraError
from milora.methods import METHODS
from milora.models.load import load_model, load_tokenizer
from milora.models.quantised import dequantised, quantization_of

TEXT = "A text to measure on, of some length."
each_quantization = pytest.mark.parametrize("quantization", QUANTIZATIONS)


def trained(folder, quantization, ids, where, method="milora", **settings):
    model = quantised(folder, quantization)
    if method in METHODS:
        adapted = adapt(model, method, **settings)
    else:
        config = LoraConfig(r=8, target_modules="all-linear", use_dora=method == "dora", task_type="CAUSAL_LM")
        vera = VeraConfig(r=8, target_modules=["q_proj"], task_type="CAUSAL_LM")
        ada = AdaLoraConfig(init_r=8, target_modules="all-linear", total_step=10, task_type="CAUSAL_LM")
        adapted = get_peft_model(model, {"vera": vera, "adalora": ada}.get(method, config))
    train_steps(adapted, ids, lr=2e-2)
    adapted.save_pretrained(where)
    return adapted


@pytest.mark.parametrize(
    ("method", "quantization"),
    [*((m, q) for m in ("milora", "lora") for q in QUANTIZATIONS), *((m, "bnb-8bit") for m in sorted(METHODS))],
)
def test_the_cost_is_that_of_quantising_again(tiny_llama, ids, quantization, method, tmp_path):
    adapted = trained(tiny_llama, quantization, ids, tmp_path / "adapter", method)
    cost = merge_quantised(tmp_path / "adapter", tiny_llama, tmp_path / "m", quantization=quantization, text=TEXT,
                           dtype="float32")  # fmt: skip
    merged = load_model(tmp_path / "m", device="cpu").eval()
    expected, lost, whole, update = {}, 0.0, 0.0, 0.0
    for name, layer in adapted.base_model.model.named_modules():
        if not hasattr(layer, "get_delta_weight"):
            continue
        W, delta = dequantised(layer.get_base_layer()).double(), layer.get_delta_weight("default").double()
        assert quantization_of(merged.get_submodule(name)) == quantization
        off = float((dequantised(merged.get_submodule(name)).double() - (W + delta)).norm())
        expected[name] = off / float((W + delta).norm())
        lost, whole, update = lost + off**2, whole + float((W + delta).norm()) ** 2, update + float(delta.norm()) ** 2
    assert len(expected) == 14
    assert cost.layers == pytest.approx(expected, rel=1e-3)
    assert cost.total == pytest.approx((lost / whole) ** 0.5, rel=1e-3) and cost.total > 1e-4
    assert cost.of_update == pytest.approx((lost / update) ** 0.5, rel=1e-3)
    assert cost.worst == max(cost.layers.items(), key=lambda item: item[1])

    text = load_tokenizer(tiny_llama)(TEXT, return_tensors="pt")["input_ids"]
    off = (logits(merged, text) - logits(adapted, text)).abs()
    assert cost.logits.tokens == text.shape[1]
    assert (cost.logits.mean, cost.logits.largest) == pytest.approx((float(off.mean()), float(off.max())), rel=1e-2)
    assert cost.logits.kl > 0
    for model, loss in ((adapted, cost.logits.loss), (merged, cost.logits.merged_loss)):
        assert loss == pytest.approx(float(model(input_ids=text, labels=text).loss), rel=1e-5)
    unmoved = logits(load_model(tiny_llama, quantization=quantization, dtype="float32", device="cpu").eval(), text)
    assert float((logits(merged, text) - unmoved).abs().mean()) > cost.logits.mean


@each_quantization
def test_into_the_high_precision_base_nothing_is_quantised(tiny_llama, ids, quantization, tmp_path, base):
    adapted = trained(tiny_llama, quantization, ids, tmp_path / "adapter")
    with pytest.warns(UserWarning, match=f"made on a {quantization} base, this one is bfloat16"):
        cost = merge_quantised(tmp_path / "adapter", tiny_llama, tmp_path / "m", quantization=quantization, text=TEXT,
                               dtype="float32", high_precision=True)  # fmt: skip
    assert cost.layers == {} and cost.total == 0.0 and cost.logits.mean > 0
    merged, own = load_model(tmp_path / "m", device="cpu"), base()
    for name, layer in adapted.base_model.model.named_modules():
        if isinstance(layer, SpectralLinear):
            W = own.get_submodule(name).weight
            assert torch.allclose(merged.get_submodule(name).weight, W + layer.get_delta_weight("default"), atol=1e-6)


@pytest.mark.parametrize(("method", "named"), [("dora", "DoRA"), ("vera", "VERA"), ("adalora", "ADALORA")])
def test_what_peft_does_not_merge_there_goes_into_the_high_precision_base(tiny_llama, ids, method, named, tmp_path):
    trained(tiny_llama, "bnb-4bit", ids, tmp_path / "adapter", method)
    said = f"got {named} on a quantised base, allowed milora's own or a plain LoRA, or --high_precision"
    with pytest.raises(MiloraError, match=said):
        merge_quantised(tmp_path / "adapter", tiny_llama, tmp_path / "m", quantization="bnb-4bit")
    assert not (tmp_path / "m").exists()
    merge_quantised(tmp_path / "adapter", tiny_llama, tmp_path / "m", quantization="bnb-4bit", high_precision=True)
    merged = load_model(tmp_path / "m", device="cpu", dtype="float32").eval()
    wanted = load_adapter(load_model(tiny_llama, device="cpu", dtype="float32").eval(), tmp_path / "adapter")
    torch.testing.assert_close(logits(merged, ids), logits(wanted, ids), atol=2e-5, rtol=1e-4)


def test_a_magnitude_is_the_same_dora_on_the_quantised_and_the_high_precision_base(tiny_llama, ids, tmp_path):
    trained(tiny_llama, "bnb-4bit", ids, tmp_path / "own", magnitude=True)
    write_lora(tmp_path / "own", None, tmp_path / "dora")
    for base in (lambda: quantised(tiny_llama, "bnb-4bit"), lambda: load_model(tiny_llama, dtype="float32").eval()):
        own, dora = (load_adapter(base(), tmp_path / kind) for kind in ("own", "dora"))
        torch.testing.assert_close(logits(own, ids), logits(dora, ids), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("method", "quantization"),
    [*(("milora", q) for q in QUANTIZATIONS), ("lora", "bnb-4bit"), ("lora", "torchao-int8")],
)
def test_a_checkpoint_that_is_quantised_takes_it_in_too(tiny_llama, ids, method, quantization, tmp_path, capsys):
    quantised(tiny_llama, quantization).save_pretrained(tmp_path / "base")
    load_tokenizer(tiny_llama).save_pretrained(tmp_path / "base")
    adapted = trained(tiny_llama, quantization, ids, tmp_path / "adapter", method)
    verb = ["merge", str(tmp_path / "adapter"), "--model_name_or_path", str(tmp_path / "base"), "--output"]
    assert main([*verb, str(tmp_path / "m"), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["quantization"] == {"bnb": "bitsandbytes", "torchao": "torchao"}[quantization.split("-")[0]]
    merged = load_model(tmp_path / "m", device="cpu").eval()
    adapted.merge_adapter()
    torch.testing.assert_close(logits(merged, ids), logits(adapted, ids), atol=1e-4, rtol=1e-3)
    assert quantization_of(merged.model.layers[0].mlp.up_proj) == quantization
    assert main([*verb, str(tmp_path / "h"), "--high_precision"]) == 2
    assert "is itself quantised" in capsys.readouterr().err and not (tmp_path / "h").exists()


def test_a_text_of_nothing_is_refused(tiny_llama, ids, tmp_path):
    trained(tiny_llama, "bnb-4bit", ids, tmp_path / "lora", "lora")
    with pytest.raises(MiloraError, match="text: got 0 tokens, allowed 2 or more"):
        merge_quantised(tmp_path / "lora", tiny_llama, tmp_path / "m", quantization="bnb-4bit", text="")
    assert not (tmp_path / "m").exists()
    assert MergeCost({}, 0.0, 0.0).worst == ("", 0.0)


def test_the_command_prints_the_cost_and_the_way_around(tiny_llama, ids, tmp_path, capsys):
    trained(tiny_llama, "bnb-4bit", ids, tmp_path / "adapter")
    text = tmp_path / "t.txt"
    text.write_text(TEXT)
    common = ["merge", str(tmp_path / "adapter"), "--model_name_or_path", str(tiny_llama), "--text", str(text)]
    assert main([*common, "--output", str(tmp_path / "q"), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["quantization"] == "bnb-4bit" and len(record["cost"]["layers"]) == 14
    assert record["cost"]["worst"] == max(record["cost"]["layers"].values()) > 0.01
    assert main([*common, "--output", str(tmp_path / "q"), "--overwrite"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"{record['cost']['total']:.2%} of their norm" in printed and record["cost"]["worst_layer"] in printed
    assert "recommended: --high_precision" in printed and "nats per token" in printed
    assert quantization_of(load_model(tmp_path / "q").model.layers[0].mlp.up_proj) == "bnb-4bit"
    assert main([*common[:4], "--output", str(tmp_path / "h"), "--high-precision"]) == 0
    assert quantization_of(load_model(tmp_path / "h").model.layers[0].mlp.up_proj) is None
    assert load_adapter(quantised(tiny_llama, "bnb-4bit"), tmp_path / "adapter")

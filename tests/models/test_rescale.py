"""A rescaled model is the same function, to the last bit, with weights of another size."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from milora.errors import MiloraError
from milora.models.rescale import NOTE, Scales, largest_difference, rescale

IDS = torch.arange(3, 51).view(2, 24)
SHAPE = {
    "vocab_size": 259, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


def logits(folder, dtype=torch.float32) -> torch.Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()(input_ids=IDS).logits


def made(folder, kind: str, dtype=torch.float32, **settings):
    """A random model in which also norms and biases are no constants."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SHAPE, **settings), dtype=dtype)
        for name, p in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                p.data += 0.3 * torch.randn_like(p)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}),
        ("llama", {"tie_word_embeddings": True}),
        ("mistral", {}),
        ("qwen2", {}),
    ],
)
def test_the_logits_are_the_same_to_the_last_bit(tmp_path, kind, settings, dtype):
    folder = made(tmp_path / "model", kind, dtype, **settings)
    before = logits(folder, dtype)
    for i, arguments in enumerate(({}, {"scale": 4.0, "gate_scale": 64.0}, {"scale": 0.5}, {"to_std": 0.004})):
        written = rescale(folder, tmp_path / f"out{i}", **arguments)
        assert any(divisor != 1 for divisor in written.scales.divisors().values())
        assert torch.equal(logits(written.folder, dtype), before), arguments
    assert float(before.float().std()) > 0.01


def test_each_tensor_is_multiplied_as_the_equations_say(tmp_path):
    folder = made(tmp_path / "model", "llama", attention_bias=True, mlp_bias=True)
    written = rescale(folder, tmp_path / "out", scale=4.0, gate_scale=32.0)
    old, new = (load_file(f / "model.safetensors") for f in (folder, written.folder))
    expected = {
        "input_layernorm.weight": 4, "post_attention_layernorm.weight": 32, "q_proj.weight": 1 / 4,
        "k_proj.weight": 1 / 4, "v_proj.weight": 1 / 4, "gate_proj.weight": 1 / 32, "up_proj.weight": 1 / 4,
        "down_proj.weight": 1 / 8, "up_proj.bias": 8,
    }  # fmt: skip
    assert old.keys() == new.keys() and len(old) == 3 + 2 * 16
    for name, tensor in old.items():
        factor = expected.get(".".join(name.split(".")[-2:]), 1)
        assert torch.equal(new[name], tensor * factor), name
    q = torch.cat([old[f"model.layers.{i}.self_attn.q_proj.weight"].flatten() for i in range(2)])
    assert written.std["q_proj"][0] == pytest.approx(float(q.std(correction=0)), rel=1e-5)
    assert (
        written.std["q_proj"][1] == written.std["q_proj"][0] / 4
        and written.std["o_proj"][0] == written.std["o_proj"][1]
    )


def test_a_real_small_model_and_back(shared_data, tmp_path):
    folder = shared_data / "models" / "stories260K"
    written = rescale(folder, tmp_path / "out")
    assert largest_difference(folder, written.folder) == {"logit": 0.0, "kl": 0.0}
    note = json.loads((written.folder / "config.json").read_text())[NOTE]
    assert note["divisors"]["gate_proj"] == 64 and note["gains"] == {
        "input_layernorm": 8,
        "post_attention_layernorm": 64,
    }
    back = rescale(written.folder, tmp_path / "back", scale=1 / 8)
    old, new = (load_file(f / "model.safetensors") for f in (folder, back.folder))
    assert all(torch.equal(old[name], new[name]) for name in old)
    assert set(json.loads((back.folder / "config.json").read_text())[NOTE]["divisors"].values()) == {1}


def test_the_difference_notices_one(tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"] *= 2
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    apart = largest_difference(tiny_llama, folder)
    assert apart["logit"] > 1e-4 and apart["kl"] > 0


def test_to_std_takes_the_nearest_powers_of_two(tiny_llama, tmp_path):
    written = rescale(tiny_llama, tmp_path / "out", to_std=0.0026)  # the weights have 0.02
    assert written.scales == Scales(8.0, 8.0, 8.0)
    assert all(0.0026 / 2**0.5 < written.std[k][1] < 0.0026 * 2**0.5 for k in ("q_proj", "up_proj", "down_proj"))


def test_the_folder_is_whole(tiny_llama, tmp_path):
    written = rescale(tiny_llama, tmp_path / "out", max_shard_size="100KB")
    assert len(list(written.folder.glob("model-*.safetensors"))) > 1
    assert torch.equal(logits(written.folder), logits(tiny_llama))
    assert AutoTokenizer.from_pretrained(written.folder)("a b").input_ids
    assert getattr(AutoConfig.from_pretrained(written.folder), NOTE)["divisors"]["up_proj"] == 8
    with pytest.raises(MiloraError, match=r"output: .* exists, allowed a new one, or --overwrite"):
        rescale(tiny_llama, tmp_path / "out")
    rescale(tiny_llama, tmp_path / "out", scale=4.0, overwrite=True)
    assert not list(written.folder.glob("model-*.safetensors"))


def edited(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"scale": 6.0}, "scale: got 6, allowed a power of two"),
        ({"scale": 0.0}, "scale: got 0, allowed a power of two"),
        ({"scale": -8.0}, "scale: got -8, allowed a power of two"),
        ({"scale": float("nan")}, "scale: got nan, allowed a power of two"),
        ({"gate_scale": 24.0}, "gate_scale: got 24, allowed a power of two"),
        ({"to_std": 0.0}, "to_std: got 0, allowed a number above 0"),
        ({"max_shard_size": "big"}, "max_shard_size: "),
    ],
)
def test_what_is_no_scale_is_refused(tiny_llama, tmp_path, arguments, why):
    with pytest.raises(MiloraError, match=why):
        rescale(tiny_llama, tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_what_is_not_known_is_refused(tiny_llama, tmp_path):
    folder, out = shutil.copytree(tiny_llama, tmp_path / "model"), tmp_path / "out"
    with pytest.raises(MiloraError, match="which is read; --overwrite would delete it"):
        rescale(folder, folder, overwrite=True)
    edited(folder, architectures=["GemmaForCausalLM"])
    with pytest.raises(MiloraError, match="is a GemmaForCausalLM, allowed LlamaForCausalLM"):
        rescale(folder, out)
    edited(folder, architectures=["LlamaForCausalLM"], quantization_config={"quant_method": "x"})
    with pytest.raises(MiloraError, match="is quantised"):
        rescale(folder, out)
    shutil.copyfile(tiny_llama / "config.json", folder / "config.json")
    tensors = load_file(folder / "model.safetensors")
    norm = tensors.pop("model.layers.1.input_layernorm.weight")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(MiloraError, match="holds no input_layernorm of layer 1"):
        rescale(folder, out)
    tensors |= {"model.layers.1.input_layernorm.weight": norm, "model.layers.1.self_attn.q_norm.weight": norm.clone()}
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(MiloraError, match=r"holds model.layers.1.self_attn.q_norm.weight, which"):
        rescale(folder, out)
    assert not out.exists()


def test_a_division_that_rounds_is_refused(tmp_path):
    folder = made(tmp_path / "model", "llama", torch.float16)
    with pytest.raises(MiloraError, match=r"times 0.0039\d+ is not exact in F16, allowed a scale nearer to 1"):
        rescale(folder, tmp_path / "out", scale=2.0, gate_scale=512.0)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_smollm2_at_llamas_scale(smollm2, tmp_path):
    written = rescale(smollm2, tmp_path / "out", to_std=0.024)
    assert written.scales == Scales(8.0, 8.0, 8.0)
    assert largest_difference(smollm2, written.folder) == {"logit": 0.0, "kl": 0.0}
    for kind in ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj"):
        assert 0.024 / 2 < written.std[kind][1] < 0.024 * 2

"""The linear weights of a checkpoint: which there are, what is read of them, and what is refused in one line."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from milora.errors import MiloraError
from milora.models import weights as reading
from milora.models.load import empty_model
from milora.models.targets import is_target, parse_targets
from milora.models.weights import linear_weights

LEAVES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture
def shards(tiny_llama: Path, tmp_path: Path) -> Path:
    """The tiny Llama in several files."""
    folder = tmp_path / "model"
    AutoModelForCausalLM.from_pretrained(tiny_llama).save_pretrained(folder, max_shard_size="80KB")
    assert len(list(folder.glob("*.safetensors"))) >= 4
    return folder


@pytest.fixture
def gpt2() -> GPT2LMHeadModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GPT2LMHeadModel(
            GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=50, bos_token_id=0, eos_token_id=0)
        )


def adapted_by_peft(folder: Path, targets) -> set[str]:
    model = get_peft_model(empty_model(folder), LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM"))
    found = {n for n, m in model.named_modules() if isinstance(m, BaseTunerLayer)}
    return {name.removeprefix("base_model.model.") for name in found}


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"], [r"self_attn.k_proj"], r".*\.1\..*_proj"])
def test_finds_what_peft_would_adapt(shards: Path, targets):
    found = linear_weights(shards, targets)
    names = [w.name for w in found.weights]
    assert found.found_by == "architecture" and len(names) == len(set(names)) >= 2
    assert set(names) == adapted_by_peft(shards, targets)


def test_each_weight_is_the_models(shards: Path):
    model = AutoModelForCausalLM.from_pretrained(shards)
    found = linear_weights(shards).weights
    assert len(found) == 14 and len({w.stored.file for w in found}) >= 4
    for weight in found:
        expected = model.get_submodule(weight.name).weight
        assert weight.shape == tuple(expected.shape)
        assert torch.equal(weight.load(), expected)


def test_only_one_tensor_is_read_for_a_weight(shards: Path, monkeypatch: pytest.MonkeyPatch):
    read: list[str] = []

    class Watched:
        def __init__(self, *arguments, **keywords):
            self.handle = _open(*arguments, **keywords)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def keys(self):
            return self.handle.keys()

        def get_slice(self, key):
            return self.handle.get_slice(key)

        def get_tensor(self, key):
            read.append(key)
            return self.handle.get_tensor(key)

    _open = reading.safe_open
    monkeypatch.setattr(reading, "safe_open", Watched)
    found = linear_weights(shards).weights
    assert read == []
    found[3].load()
    assert read == [f"{found[3].name}.weight"]


def test_a_conv1d_comes_as_the_view_that_an_adapter_decomposes(gpt2, tmp_path: Path):
    gpt2.save_pretrained(tmp_path / "whole")
    gpt2.transformer.save_pretrained(tmp_path / "bare")  # without the prefix `transformer.`
    for folder, key in (("whole", "transformer.h.0.attn.c_attn.weight"), ("bare", "h.0.attn.c_attn.weight")):
        found = linear_weights(tmp_path / folder).weights
        assert found[0].stored.key == key
        assert [w.name.split(".", 2)[2] for w in found[:4]] == [
            "0.attn.c_attn",
            "0.attn.c_proj",
            "0.mlp.c_fc",
            "0.mlp.c_proj",
        ]
        assert len(found) == 8 and found[0].shape == (96, 32)
        for weight in found:
            assert torch.equal(weight.load(), gpt2.get_submodule(weight.name).weight.T)


def test_without_an_architecture_the_names_decide(shards: Path):
    (shards / "config.json").unlink()
    found = linear_weights(shards)
    assert found.found_by == "names" and "config.json" in found.note
    assert len(found.weights) == 14
    assert {w.name.rsplit(".", 1)[1] for w in found.weights} == set(LEAVES)
    assert {w.name for w in linear_weights(shards, ["q_proj"]).weights} == {
        f"model.layers.{i}.self_attn.q_proj" for i in (0, 1)
    }


def test_code_of_the_models_own_is_not_run(shards: Path):
    config = json.loads((shards / "config.json").read_text())
    config |= {"model_type": "homemade", "auto_map": {"AutoConfig": "homemade.Homemade"}}
    (shards / "config.json").write_text(json.dumps(config))
    (shards / "homemade.py").write_text("raise SystemExit('run')")
    found = linear_weights(shards)
    assert found.found_by == "names" and len(found.weights) == 14
    assert "custom code" in found.note


def test_a_weight_that_modules_share_stands_once(gpt2, tmp_path: Path):
    first, second = (gpt2.transformer.h[i].attn.c_attn for i in (0, 1))
    second.weight = first.weight
    stored = {k: v.clone() for k, v in gpt2.state_dict().items() if k != "transformer.h.0.attn.c_attn.weight"}
    save_file(stored, tmp_path / "model.safetensors")  # under the name of either module
    modules = reading.linear_modules(gpt2.transformer)
    modules = {f"transformer.{name}": module for name, module in modules.items()}
    found = reading.from_tensors(gpt2, modules, reading.stored_tensors(tmp_path))
    assert len(found) == 8 and len(reading._once(found)) == 7
    assert reading._once(found)[0].name == "transformer.h.0.attn.c_attn"
    assert torch.equal(found[0].load(), first.weight.T)


def replaced(folder: Path, change) -> None:
    file = next(
        f for f in sorted(folder.glob("*.safetensors")) if any("layers.0.self_attn.q_proj" in k for k in load_file(f))
    )
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


Q = "model.layers.0.self_attn.q_proj"


def _eight_bit(tensors):
    tensors[f"{Q}.weight"] = tensors[f"{Q}.weight"].to(torch.int8)


def _eight_bit_float(tensors):
    tensors[f"{Q}.weight"] = tensors[f"{Q}.weight"].to(torch.float8_e4m3fn)


def _packed(tensors):
    del tensors[f"{Q}.weight"]
    tensors[f"{Q}.qweight"] = torch.zeros(8, 64, dtype=torch.int32)


def _four_bit(tensors):
    tensors[f"{Q}.weight"] = torch.zeros(2048, 1, dtype=torch.uint8)


def _gone(tensors):
    del tensors[f"{Q}.weight"]


def _cut(tensors):
    tensors[f"{Q}.weight"] = tensors[f"{Q}.weight"][:5].clone()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_eight_bit, f"{Q}.weight is stored as I8"),
        (_eight_bit_float, f"{Q}.weight is stored as F8_E4M3"),
        (_packed, f"{Q}.qweight is stored as I32"),
        (_four_bit, f"{Q}.weight is stored as U8"),
        (_gone, f"holds no tensor for {Q}"),
        (_cut, r"is \(5, 64\), the model's .* is \(64, 64\)"),
    ],
)
def test_what_cannot_be_decomposed_is_refused_by_name(shards: Path, change, message: str):
    replaced(shards, change)
    with pytest.raises(MiloraError, match=message) as caught:
        linear_weights(shards)
    assert "\n" not in str(caught.value)
    assert len(linear_weights(shards, ["v_proj"]).weights) == 2  # what was not asked for does not matter


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: linear_weights(f / "nosuch"), "does not exist"),
        (lambda f: linear_weights("nosuch-owner/nosuch-model"), "the hub cannot be reached"),
        (lambda f: linear_weights(f / "model.gguf"), "model.gguf does not exist"),
        (lambda f: linear_weights(f, ["q_proj", "qproj"]), "'qproj' matches no linear module, allowed e.g. q_proj"),
        (lambda f: linear_weights(f, "embed.*"), "matches none of 15 linear modules"),
    ],
)
def test_a_wrong_call_is_one_line(shards: Path, call, message: str):
    with pytest.raises(MiloraError, match=message) as caught:
        call(shards)
    assert "\n" not in str(caught.value)


def test_a_folder_without_weights_is_one_line(shards: Path):
    for file in shards.glob("*.safetensors*"):
        file.unlink()
    with pytest.raises(MiloraError, match="holds no weights"):
        linear_weights(shards)


def test_gguf_needs_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr("milora.models.gguf_weights.find_spec", lambda name: None)
    with pytest.raises(MiloraError, match=r"gguf is not installed; pip install 'milora\[demo\]'"):
        linear_weights(tmp_path / "m.gguf")


def test_a_file_that_is_no_gguf_is_one_line(tmp_path: Path):
    pytest.importorskip("gguf")
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(MiloraError, match="cannot be read as a language model"):
        linear_weights(tmp_path, gguf_file="m.gguf")


@pytest.mark.slow
def test_gguf_weights_are_what_transformers_loads(smollm2: Path):
    """The folder's safetensors are what transformers made of the file."""
    from milora.models.smollm2 import _FILE, _package_folder

    file = _package_folder() / _FILE
    made = {weight.name: weight for weight in linear_weights(smollm2).weights}
    found = linear_weights(file)
    assert len(found.weights) == 210 and found.found_by == "architecture"
    # q and k are stored with their rows permuted, which the first three layers show.
    for weight in found.weights[:21]:
        assert torch.equal(weight.load(), made[weight.name].load()), weight.name
    same = linear_weights(file.parent, ["q_proj"], gguf_file=file.name).weights
    assert [w.name for w in same] == [w.name for w in found.weights if w.name.endswith("q_proj")]


@pytest.mark.parametrize("targets", [["q_proj"], ["self_attn.q_proj", "lm_head"], r".*q_proj", r"model\..*\.0\..*"])
def test_names_match_as_peft_matches_them(targets):
    names = [f"model.layers.{i}.self_attn.{leaf}" for i in range(11) for leaf in ("q_proj", "xq_proj")] + ["lm_head"]
    config = LoraConfig(target_modules=targets)
    peft = [n for n in names if check_target_module_exists(config, n)]
    assert [n for n in names if is_target(targets, n)] == peft != []


def test_what_targets_may_be():
    assert parse_targets("all-linear") == "all-linear"
    assert parse_targets("q_proj") == ["q_proj"]
    assert parse_targets("q_proj, self_attn.v_proj") == ["q_proj", "self_attn.v_proj"]
    assert parse_targets(r".*\.(q|v)_proj") == r".*\.(q|v)_proj"
    with pytest.raises(MiloraError, match="no regular expression"):
        parse_targets("q_proj(")
    with pytest.raises(MiloraError, match="allowed all-linear"):
        parse_targets(" , ")

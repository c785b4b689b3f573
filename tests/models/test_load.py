"""What a model folder may be, and the one line that answers what it may not."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from milora.errors import MiloraError
from milora.models.checkpoint import check_checkpoint, is_local
from milora.models.fingerprint import fingerprint, model_fingerprint, precision
from milora.models.load import empty_model, load_model, load_tokenizer


@pytest.fixture
def folder(tiny_llama, tmp_path):
    return shutil.copytree(tiny_llama, tmp_path / "model")


def test_loads_in_the_dtype_asked_for(folder):
    assert load_model(folder).dtype == torch.float32
    assert load_model(folder, dtype="bfloat16").dtype == torch.bfloat16
    assert load_tokenizer(folder).pad_token is not None
    with pytest.raises(MiloraError, match="dtype: got 'int3'"):
        load_model(folder, dtype="int3")


def test_an_empty_model_has_shapes_and_no_values(folder):
    model = empty_model(folder)
    assert all(p.is_meta for p in model.parameters())
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in load_model(folder).parameters())


def _delete_weights(folder):
    (folder / "model.safetensors").unlink()


def _only_pickle(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    _delete_weights(folder)


def _truncate(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _garble_header(folder):
    file = folder / "model.safetensors"
    file.write_bytes((2**40).to_bytes(8, "little") + file.read_bytes()[8:])


def _no_config(folder):
    (folder / "config.json").unlink()


def _nan(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _index_names_absent_shard(folder):
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _index_leaves_its_folder(folder):
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _index_is_no_index(folder):
    (folder / "model.safetensors.index.json").write_text("[" * 100_000)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "does not exist"),
        (_delete_weights, "holds no weights"),
        (_only_pickle, "pickled weights .pytorch_model.bin."),
        (_truncate, "broken or truncated"),
        (_garble_header, "broken or truncated"),
        (_no_config, "holds no config.json"),
        (_nan, "layers.1.mlp.up_proj.weight holds NaN or Inf"),
        (_index_names_absent_shard, "does not exist, though the index names it"),
        (_index_leaves_its_folder, "names a file outside its folder"),
        (_index_is_no_index, "not a safetensors index"),
    ],
)
def test_a_damaged_checkpoint_is_one_line(folder, damage, message):
    damage(folder)
    with pytest.raises(MiloraError, match=message) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def test_a_whole_checkpoint_passes(folder):
    assert check_checkpoint(folder) is None


def test_paths_and_hub_names_are_told_apart(folder):
    assert is_local(folder)
    assert is_local("./nosuch")
    assert is_local("/nosuch/folder")
    assert not is_local("owner/name")


def test_a_name_that_is_nowhere_is_one_line():
    with pytest.raises(MiloraError, match="model nosuch-owner/nosuch-model"):
        load_model("nosuch-owner/nosuch-model")


def test_a_fingerprint_names_content_not_precision(folder):
    model = load_model(folder)
    first = model_fingerprint(model)
    assert model_fingerprint(load_model(folder, dtype="bfloat16")) == first
    assert model_fingerprint(load_model(folder, dtype="bfloat16").float()) == first
    model.model.layers[0].mlp.up_proj.weight.data[3, 5] *= 1.01
    assert model_fingerprint(model) != first
    W = torch.ones(2, 3)
    assert fingerprint([("a", W)]) != fingerprint([("b", W)])
    assert fingerprint([("a", W)]) != fingerprint([("a", W.T)])


def test_precisions_that_round_differently_are_told_apart():
    assert precision([torch.float32, torch.bfloat16]) == "bfloat16"
    assert precision([torch.float16]) == "float16"
    assert precision([torch.bfloat16], "Linear4bit") == "Linear4bit"


def test_what_the_machine_does_not_have_is_one_line(folder, monkeypatch):
    with pytest.raises(MiloraError, match="device: got 'cuda:77'"):
        load_model(folder, device="cuda:77")
    with pytest.raises(MiloraError, match="device: got 'abacus'"):
        load_model(folder, device="abacus")
    monkeypatch.setattr("milora.models.quantised.find_spec", lambda name: None)
    for quantization, package in (("bnb-4bit", "bitsandbytes"), ("torchao-int4", "torchao")):
        with pytest.raises(MiloraError, match=rf"{package} is not installed; pip install 'milora\[quant\]'"):
            load_model(folder, quantization=quantization)
    with pytest.raises(MiloraError, match="quantization: got 'bnb-3bit', allowed bnb-4bit, "):
        load_model(folder, quantization="bnb-3bit")

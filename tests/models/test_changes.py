"""The changes between two whole checkpoints: each tensor read in its turn, and what does not fit refused."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from milora.errors import MiloraError
from milora.models.changes import checkpoint_changes
from models.tracked import Loads

Q = "model.layers.0.self_attn.q_proj"


def copied(source: Path, target: Path, change=lambda tensors: None, dtype: torch.dtype = torch.float32) -> Path:
    shutil.copytree(source, target)
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(source / "model.safetensors").items()}
    change(tensors)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_change_is_the_difference_of_what_is_stored(tiny_llama: Path, tmp_path: Path, dtype: torch.dtype):
    draw = torch.Generator().manual_seed(0)

    def trained(tensors):
        for name, tensor in tensors.items():
            if name != f"{Q}.weight":
                tensors[name] = (tensor + 0.01 * torch.randn(tensor.shape, generator=draw)).to(tensor.dtype)

    base = copied(tiny_llama, tmp_path / "base", dtype=dtype)
    tuned = copied(base, tmp_path / "tuned", trained, dtype)
    found = checkpoint_changes(base, tuned)
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tuned))
    assert len(found) == 14 and found.r is None and found.skipped == ()
    for name, W, dW in found:
        first, second = before[f"{name}.weight"], after[f"{name}.weight"]
        assert torch.equal(W, first.float()) and W.dtype == dW.dtype == torch.float32
        assert torch.equal(dW, second.float() - first.float())
        assert bool(dW.any()) is (name != Q)
    chosen = checkpoint_changes(base, tuned, ["q_proj", "lm_head"])
    assert [name.rsplit(".", 1)[-1] for name, _, _ in chosen] == ["q_proj", "q_proj", "lm_head"]


def test_one_module_at_a_time(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch):
    found = checkpoint_changes(tiny_llama, tiny_llama)
    loads = Loads(monkeypatch)
    for change in found:
        assert not change[2].any()
        del change
    # Of a module W and W' are read; of the modules before, nothing is left.
    assert loads.alive == [0, 1] * 14


def test_what_does_not_fit_is_refused(tiny_llama: Path, tmp_path: Path):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_pretrained(tiny_llama)
    for name, key, value, said in (
        ("narrow", "intermediate_size", 96, r"mlp.gate_proj is \(96, 64\) in .*narrow, \(112, 64\) in"),
        ("short", "num_hidden_layers", 1, "has no linear weight model.layers.1.self_attn.q_proj"),
        ("long", "num_hidden_layers", 3, "has model.layers.2.self_attn.q_proj, which"),
    ):
        other = LlamaConfig.from_dict({**config.to_dict(), key: value, "layer_types": None})
        LlamaForCausalLM(other).save_pretrained(tmp_path / name)
        with pytest.raises(MiloraError, match=said):
            checkpoint_changes(tiny_llama, tmp_path / name)


@pytest.mark.slow
def test_a_gguf_file_is_a_checkpoint_too(smollm2: Path):
    """SmolLM2's own file against the safetensors that were made of it by another way."""
    from milora.models.smollm2 import _FILE, _package_folder

    found = checkpoint_changes(_package_folder(), smollm2, ["layers.0.self_attn.q_proj", "down_proj"], gguf_file=_FILE)
    assert len(found) == 31
    for _, W, dW in found:
        assert W.any() and not dW.any()

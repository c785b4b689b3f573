"""Adapters made from the store."""

import copy
import gc
import logging

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from adapters.steps import adapt, logits, train_steps
from milora.adapters import SpectralConfig, SpectralLinear
from milora.decompositions import Part, Store, inventory, using
from milora.errors import MiloraError
from milora.methods import METHODS, Factors
from milora.models import digest

METHOD_NAMES = sorted(METHODS)


@pytest.fixture
def store(tmp_path):
    """The store that adapters of a test use."""
    used = Store(tmp_path / "store")
    with using(used):
        yield used


@pytest.fixture
def computed(monkeypatch) -> list[str]:
    asked: list[str] = []
    compute = Part.compute
    monkeypatch.setattr(Part, "compute", lambda self, W, strict=False: (asked.append(self.name), compute(self, W))[1])
    return asked


def factors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.detach() for n, p in model.named_parameters() if "spectral_" in n or "basis_" in n}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("method", METHOD_NAMES)
def test_a_start_from_the_store_is_the_start_that_filled_it(base, store, computed, method, dtype):
    first = factors(adapt(base(dtype), method))
    assert len(computed) == 14
    again = factors(adapt(base(dtype), method))
    assert len(computed) == 14
    with using(None):
        without = factors(adapt(base(dtype), method))
    assert len(first) >= 28
    for name, value in first.items():
        assert torch.equal(again[name], value) and torch.equal(without[name], value), name
    assert [p for _, p in inventory.verify(store.folder)] == [None] * 14


def test_factors_become_parameters_of_their_own():
    wide, long = torch.randn(4, 16).T, torch.randn(20, 24)
    config = SpectralConfig(method="milora", r=4, target_modules=["0"])
    layer = SpectralLinear(nn.Linear(24, 16), "default", config, "0", factors=Factors(wide, long[4:8], dead=2))
    L0, R0 = layer.spectral_L0["default"], layer.spectral_R0["default"]
    assert torch.equal(L0, wide) and torch.equal(R0, long[4:8]) and layer.dead["default"] == 2
    for value in (L0, R0):
        assert value.is_contiguous() and value.untyped_storage().nbytes() == value.nbytes


def test_one_entry_serves_two_methods_and_the_precisions_of_one_checkpoint(base, store, computed):
    short = base(torch.bfloat16)
    adapt(copy.deepcopy(short), "milora")
    adapt(copy.deepcopy(short), "mica", r=4)
    adapt(copy.deepcopy(short).float(), "milora")
    assert len(computed) == 14


def test_every_weight_is_hashed_once(base, store, monkeypatch):
    hashed: list[torch.Size] = []
    for room in ("milora.adapters.model", "milora.decompositions.store"):
        monkeypatch.setattr(f"{room}.weight_digest", lambda W: (hashed.append(W.shape), digest.weight_digest(W))[1])
    adapt(base(), "milora")
    assert len(hashed) == 14


def test_a_loaded_adapter_asks_the_store_for_nothing(base, ids, store, computed, tmp_path):
    adapted = adapt(base(), "milora")
    train_steps(adapted, ids)
    adapted.save_pretrained(tmp_path / "adapter")
    inventory.clear(store.folder)
    computed.clear()
    again = PeftModel.from_pretrained(base(), tmp_path / "adapter").eval()
    assert torch.equal(logits(again, ids), logits(adapted, ids))
    assert computed == [] and not list(inventory.entries(store.folder))


def test_a_weight_that_cannot_be_decomposed_is_named_and_the_model_left_alone(base, store):
    model = base()
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(MiloraError, match=r"layer model\.layers\.1\.mlp\.up_proj: weight: got NaN"):
        adapt(model, "milora")
    assert not any(isinstance(m, SpectralLinear) for m in model.modules())


def test_a_store_that_cannot_be_written_costs_a_warning(base, tmp_path, computed, caplog):
    (tmp_path / "file").write_text("")
    with using(Store(tmp_path / "file")), caplog.at_level(logging.WARNING):
        adapt(base(), "milora")
    assert len(computed) == 14
    assert [r.name for r in caplog.records if r.name.startswith("milora")] == ["milora.decompositions"]


def test_a_transposed_weight_has_the_entry_of_its_matrix(store, computed):
    W = torch.randn(16, 24, generator=torch.Generator().manual_seed(0))
    linear, conv = nn.Linear(24, 16, bias=False), Conv1D(16, 24)
    linear.weight.data, conv.weight.data = W, W.T.contiguous()
    made = [
        get_peft_model(nn.Sequential(layer), SpectralConfig(method="milora", r=4, target_modules=["0"]))
        for layer in (linear, conv)
    ]
    assert computed == ["bottom-4"]
    assert all(torch.equal(a, b) for a, b in zip(*(factors(m).values() for m in made), strict=True))


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_is_collected_afterwards_as_it_was_before(base, store, monkeypatch, enabled):
    seen: list[bool] = []
    make = SpectralLinear.update_layer
    monkeypatch.setattr(SpectralLinear, "update_layer", lambda *a, **k: (seen.append(gc.isenabled()), make(*a, **k))[1])
    try:
        gc.enable() if enabled else gc.disable()
        adapt(base(), "milora")
        after = gc.isenabled()
    finally:
        gc.enable()
    assert seen == [False] * 14 and after == enabled

"""A base that runs borrow: the runs are those that load their own, and the base is given back as it was."""

import pytest
import torch
from safetensors.torch import load_file

from milora.errors import MiloraError
from milora.recipes.schema import Recipe
from milora.training.shared_base import SharedBase
from milora.training.train import train


def logits(model):
    with torch.no_grad():
        return model.eval()(torch.tensor([list(range(3, 40))])).logits


@pytest.fixture
def base(settings) -> SharedBase:
    return SharedBase(Recipe(**settings))


def test_runs_on_a_shared_base_are_those_that_load_their_own(settings, base, tmp_path):
    before = logits(base.model)
    for method in ("lora", "milora", "lora", "pissa"):
        keys = settings | {"method": method, "gradient_checkpointing": method == "pissa"}
        shared = train(Recipe(**keys | {"output_dir": str(tmp_path / "shared")}), base=base, overwrite=True)
        alone = train(Recipe(**keys | {"output_dir": str(tmp_path / "alone")}), overwrite=True)
        weights = [load_file(run.path / "adapter_model.safetensors") for run in (shared, alone)]
        assert weights[0].keys() == weights[1].keys() and weights[0]
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
        assert shared.provenance()["base_fingerprint"] == alone.provenance()["base_fingerprint"] == base.fingerprint
        assert torch.equal(logits(base.model), before)
        assert not hasattr(base.model, "peft_config")
        assert all(p.requires_grad for p in base.model.parameters())


def test_a_run_that_fails_gives_the_base_back(settings, base, monkeypatch):
    def fail(*_):
        raise OSError("no")

    before = logits(base.model)
    monkeypatch.setattr("milora.training.train.save_result", fail)
    with pytest.raises(OSError, match="no"):
        train(Recipe(**settings | {"method": "lora"}), base=base)
    assert not hasattr(base.model, "peft_config")
    assert torch.equal(logits(base.model), before)


def test_full_fine_tuning_and_other_bases_load_their_own(settings, base, full):
    before = logits(base.model)
    assert not base.serves(Recipe(**settings | full))
    assert not base.serves(Recipe(**settings | {"dtype": "bfloat16"}))
    assert not base.serves(Recipe(**settings | {"method": "lora", "bias": "all"}))
    assert not base.serves(Recipe(**settings | {"method": "lora", "method_settings": {"init_lora_weights": "pissa"}}))
    train(Recipe(**settings | full), base=base)
    assert torch.equal(logits(base.model), before)


def test_a_changed_base_is_told(base):
    with (
        pytest.raises(MiloraError, match=r"shared base: a run has changed .*q_proj"),
        base.lent() as model,
        torch.no_grad(),
    ):
        model.model.layers[0].self_attn.q_proj.weight[0, 0] += 1e-3

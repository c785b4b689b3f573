"""Predicted first steps against steps of a real optimiser, and ratios by hand."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from milora.adapters import SpectralConfig
from milora.analysis import measured_ratios, predicted_ratios
from milora.methods import METHODS

LR = 1e-4
TYPES = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]


@pytest.fixture
def ids() -> torch.Tensor:
    """Token ids (4, 24)."""
    return torch.randint(3, 250, (4, 24), generator=torch.Generator().manual_seed(3))


def adapted(folder, method: str, r: int = 8, **settings):
    """The tiny Llama, whose weights have the standard deviation of LLaMA's (0.02), adapted."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if method in METHODS:
        config = SpectralConfig(method=method, r=r, target_modules=TYPES, **settings)
    else:
        config = LoraConfig(r=r, lora_alpha=2 * r, target_modules=TYPES, use_dora=method == "dora", **settings)
    return get_peft_model(model, config)


def record(model: nn.Module, ids: torch.Tensor, steps: int = 3) -> dict:
    """What an analysis says of a few AdamW steps at LR: the norm of each module's change."""
    weights = {n: m.weight.detach().double() for n, m in merged(model).items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR, weight_decay=0.0)
    for _ in range(steps):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = {n: m.weight.detach().double() for n, m in merged(model).items()}
    rows = [{"module": n, "norm_dW": float((after[n] - W).norm())} for n, W in weights.items()]
    return {"modules": [row for row in rows if row["module"].split(".")[-1] in TYPES]}


def merged(model: nn.Module) -> dict[str, nn.Linear]:
    import copy

    plain = copy.deepcopy(model).merge_and_unload()
    return {n: m for n, m in plain.named_modules() if isinstance(m, nn.Linear) and "lm_head" not in n}


@pytest.fixture(scope="module")
def lora_record(tiny_llama):
    ids = torch.randint(3, 250, (4, 24), generator=torch.Generator().manual_seed(3))
    return record(adapted(tiny_llama, "lora"), ids)


@pytest.mark.parametrize("method", [*METHODS, "dora"])
def test_predicted_ratios_are_measured_within_a_quarter(tiny_llama, ids, lora_record, method):
    model = adapted(tiny_llama, method)
    predicted = predicted_ratios(model)
    measured = measured_ratios(record(model, ids), lora_record)
    assert predicted["by_type"].keys() == measured["by_type"].keys() == set(TYPES)
    assert predicted["all"] == pytest.approx(measured["all"], rel=0.25)
    for kind in TYPES:
        assert predicted["by_type"][kind] == pytest.approx(measured["by_type"][kind], rel=0.25), kind

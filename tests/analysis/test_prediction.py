"""Predicted first steps against steps of a real optimiser, and ratios by hand."""

import copy
import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from milora.adapters import SpectralConfig
from milora.adapters.build import method_names
from milora.adapters.first_steps import adapted_layers, adapter_steps, layer_steps
from milora.analysis import measured_ratios, predict_update, predicted_ratios
from milora.analysis.prediction import checkpoint_ratios, ratios, weights_at_hand
from milora.decompositions import Store
from milora.errors import MiloraError
from milora.methods import METHODS
from milora.models.weights import linear_weights

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


def test_ratios_are_of_root_sums_of_squares():
    own = {"h.0.q": 3.0, "h.1.q": 4.0, "h.0.up": 2.0, "h.1.up": 1.0}
    other = {"h.0.q": 1.0, "h.1.q": 0.0, "h.0.up": 4.0, "h.2.up": 9.0}  # h.1.up is not there: it is not compared
    found = ratios(own, other)
    assert found["by_type"] == pytest.approx({"q": 5.0, "up": 0.5})
    assert found["all"] == pytest.approx(math.sqrt((9 + 16 + 4) / (1 + 16)))
    assert ratios({"h.0.q": 1.0}, {"h.0.q": 0.0}) == {"by_type": {"q": None}, "all": None}
    assert ratios({}, other) == {"by_type": {}, "all": None}


def test_measured_ratios_leave_out_what_was_not_measured():
    rows = [{"module": "h.0.q", "norm_dW": 3.0}, {"module": "h.1.q", "norm_dW": None}]
    beside = [{"module": "h.0.q", "norm_dW": 2.0}, {"module": "h.1.q", "norm_dW": 5.0}]
    assert measured_ratios({"modules": rows}, {"modules": beside}) == {"by_type": {"q": 1.5}, "all": 1.5}


def test_a_live_adapter_and_its_request_say_the_same(tiny_llama):
    for method in [*METHODS, "lora", "dora"]:
        model = adapted(tiny_llama, method)
        live = adapter_steps(model)
        asked = layer_steps(adapted_layers(model), {"method": method, "lora_r": 8})
        assert live.keys() == asked.keys() and len(live) == 2 * len(TYPES)
        # LoRA's A is drawn: 8 x 64 numbers are near their expectation.
        assert all(live[n] == pytest.approx(asked[n], rel=0.1 if "or" in method[1:3] else 1e-5) for n in live), method


def test_ranks_alphas_and_rslora_of_the_adapter_are_seen(tiny_llama):
    plain = adapter_steps(adapted(tiny_llama, "milora"))
    other = adapter_steps(adapted(tiny_llama, "milora", rank_pattern={"q_proj": 2}, lora_alpha=32, use_rslora=True))
    k, q = "model.layers.0.self_attn.k_proj", "model.layers.0.self_attn.q_proj"
    # L0 and R0 hold 1/s: ||dW|| grows with the root of s.
    assert other[k] / plain[k] == pytest.approx((32 / math.sqrt(8)) ** 0.5, rel=1e-5)
    W = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float64).get_submodule(q).weight.detach()
    s = 32 / math.sqrt(2)
    assert other[q] == pytest.approx(math.sqrt(s * 128 * float(torch.linalg.svdvals(W)[-2:].sum())), rel=1e-5)


def test_the_ratio_depends_on_the_scale_of_the_weights(tiny_llama):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    W = model.model.layers[0].mlp.up_proj.weight.detach()  # (112, 64)
    by_hand = math.sqrt((112 + 64) * float(torch.linalg.svdvals(W.double())[-8:].sum()) / (4 * 112 * 8 / 3))
    lora = predict_update(W, "lora", r=8)
    assert predict_update(W, "milora", r=8) / lora == pytest.approx(by_hand, rel=1e-6)
    assert predict_update(W / 64, "milora", r=8) / lora == pytest.approx(by_hand / 8, rel=1e-6)
    assert predict_update(W / 64, "lora", r=8) == lora == pytest.approx(2 * math.sqrt(112 * 8 / 3))
    assert predict_update(W, "lora", r=8, alpha=8.0) == pytest.approx(lora / 2)
    assert predict_update(W, "milora", r=8, method_settings={"magnitude": True}) > predict_update(W, "milora", r=8)


def test_a_checkpoint_and_a_live_model_give_the_same_ratios(tiny_llama):
    weights = linear_weights(tiny_llama, TYPES).weights
    found = checkpoint_ratios(weights, None, r=8)
    assert set(found) == set(method_names()) and found["vera"] is found["adalora"] is None
    for method in METHODS:
        live = predicted_ratios(adapted(tiny_llama, method))
        assert found[method]["all"] == pytest.approx(live["all"], rel=1e-4), method
        assert found[method]["by_type"] == pytest.approx(live["by_type"], rel=1e-4), method
    against = checkpoint_ratios(weights, None, r=8, against="pissa")
    assert against["pissa"]["all"] == 1
    assert against["milora"]["all"] == pytest.approx(found["milora"]["all"] / found["pissa"]["all"])
    wide = checkpoint_ratios(weights, None, r=40)  # over the 32 rows of k and v
    assert {m for m, ratio in wide.items() if ratio is None} - {"vera", "adalora"} == {
        "lora_xs", "mica", "milora", "pissa", "random_components",
    }  # fmt: skip


def test_the_store_is_asked_for_singular_values_once(tiny_llama, tmp_path):
    weights, store = linear_weights(tiny_llama, TYPES).weights, Store(tmp_path / "store")
    first = checkpoint_ratios(weights, store, r=8)
    assert len(list(store.folder.rglob("values*"))) == len(weights) == 2 * len(TYPES)
    assert checkpoint_ratios(weights, store, r=4)["svf"]["all"] > 0
    assert first == checkpoint_ratios(weights, store, r=8)
    assert first["milora"]["all"] == pytest.approx(checkpoint_ratios(weights, None, r=8)["milora"]["all"], rel=1e-6)


def test_embeddings_are_left_out(tiny_llama):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    config = SpectralConfig(method="mica", r=8, target_modules=["q_proj", "embed_tokens"])
    assert list(predicted_ratios(get_peft_model(model, config))["by_type"]) == ["q_proj"]


def test_what_is_not_predicted_is_refused_in_a_line(tiny_llama):
    model = adapted(tiny_llama, "lora_xs", as_published=True)
    with pytest.raises(MiloraError, match="adapter 'default' has no linear layer whose first steps are predicted"):
        predicted_ratios(model)
    with pytest.raises(MiloraError, match="got a model without an adapter 'x'"):
        predicted_ratios(adapted(tiny_llama, "lora"), adapter="x")
    with pytest.raises(MiloraError, match="first steps: got vera, which are not predicted"):
        predicted_ratios(adapted(tiny_llama, "lora"), against="vera")
    with pytest.raises(MiloraError, match="first steps: got svf as_published"):
        predict_update(torch.eye(8), "svf", method_settings={"as_published": True})
    with pytest.raises(MiloraError, match="rank: got 9, allowed 1 to 8"):
        predict_update(torch.eye(8), "milora", r=9)
    with pytest.raises(MiloraError, match="against: got 'vera'"):
        checkpoint_ratios(linear_weights(tiny_llama, TYPES).weights, None, r=8, against="vera")


def test_large_weights_are_decomposed_only_when_asked(tiny_llama, tmp_path, monkeypatch):
    assert len(weights_at_hand(str(tiny_llama), TYPES)[0]) == 10
    assert weights_at_hand(str(tiny_llama), TYPES, False) == ([], "")
    monkeypatch.setattr("milora.analysis.prediction._QUICK", 1e3)
    none, why = weights_at_hand(str(tiny_llama), TYPES)
    assert none == [] and why.startswith("10 large matrices")
    assert len(weights_at_hand(str(tiny_llama), TYPES, True)[0]) == 10
    assert weights_at_hand(str(tmp_path / "absent"), TYPES)[0] == []
    with pytest.raises(MiloraError, match="absent"):
        weights_at_hand(str(tmp_path / "absent"), TYPES, True)

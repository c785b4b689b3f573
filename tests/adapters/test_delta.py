"""The change of each weight, read from a saved adapter, and its best approximation in fewer ranks."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from adapters.steps import adapt, train_steps
from milora.adapters import SpectralLinear
from milora.adapters.delta import AdapterFile, Delta, deltas
from milora.adapters.truncate import LayerError, total, truncated
from milora.errors import MiloraError
from milora.methods import METHODS


def saved(model, ids, folder):
    train_steps(model, ids)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("method", sorted(METHODS))
def test_it_is_the_layers_own_to_the_bit(base, ids, tmp_path, method):
    ranked = {"lora_alpha": 12, "rank_pattern": {"q_proj": 3}} if METHODS[method].ranked else {}
    model = saved(adapt(base(), method, **ranked), ids, tmp_path)
    layers = {n.removeprefix("base_model.model."): m for n, m in model.named_modules() if isinstance(m, SpectralLinear)}
    found = dict(deltas(tmp_path))
    assert list(found) == sorted(layers) and len(found) == 14
    for name, delta in found.items():
        layer = layers[name]
        assert torch.equal(delta.dense(), layer.get_delta_weight("default"))
        assert delta.shape == (layer.out_features, layer.in_features)
        W = layer.get_base_layer().weight
        assert torch.allclose(delta.P @ delta.Q, delta.dense(), atol=1e-6, rtol=0) and delta.rank == delta.Q.shape[0]
        assert torch.equal(delta.added_to(W), W + layer.get_delta_weight("default"))
        half = W.to(torch.bfloat16)
        assert torch.equal(delta.added_to(half), (half.float() + delta.dense()).to(torch.bfloat16))


@pytest.mark.parametrize("rslora", [False, True])
def test_a_lora_is_read_with_pefts_scales(base, ids, tmp_path, rslora):
    config = LoraConfig(
        r=8, lora_alpha=12, use_rslora=rslora, target_modules="all-linear", rank_pattern={"q_proj": 3},
        alpha_pattern={"layers.1.mlp.up_proj": 5},
    )  # fmt: skip
    model = saved(get_peft_model(base(), config), ids, tmp_path)
    found = dict(deltas(tmp_path))
    assert len(found) == 14
    for name, delta in found.items():
        theirs = model.get_submodule(f"base_model.model.{name}").get_delta_weight("default")
        assert torch.allclose(delta.dense(), theirs, atol=1e-7, rtol=0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"use_dora": True}, "use_dora is set, allowed a plain LoRA"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', which rewrites the base weights"),
        ({"init_lora_weights": "olora"}, "init_lora_weights is 'olora'"),
        ({"lora_bias": True}, "lora_bias is set"),
    ],
)
def test_what_is_no_sum_of_two_factors_is_refused(base, tmp_path, settings, said):
    get_peft_model(base(), LoraConfig(r=4, target_modules=["q_proj"], **settings)).save_pretrained(tmp_path)
    with pytest.raises(MiloraError, match=said):
        AdapterFile(tmp_path)


def random_delta(out, in_, ranks, seed=0, scale=0.7):
    draw = torch.Generator().manual_seed(seed)
    terms = tuple((torch.randn(out, r, generator=draw), torch.randn(r, in_, generator=draw)) for r in ranks)
    return Delta(terms, scale)


@pytest.mark.parametrize(("out", "in_", "ranks"), [(20, 31, (3, 4)), (31, 20, (5,)), (6, 9, (4, 4))])
@pytest.mark.parametrize("q", [1, 2, 5, 40])
def test_the_truncation_is_the_best_one(out, in_, ranks, q):
    delta = random_delta(out, in_, ranks)
    B, A, error = truncated(delta, q, "layer")
    dense = sum(P.double().numpy() @ Q.double().numpy() for P, Q in delta.terms) * 0.7
    U, S, Vh = np.linalg.svd(dense, full_matrices=False)
    best = (U[:, :q] * S[:q]) @ Vh[:q]
    assert np.abs((B.double() @ A.double()).numpy() - best).max() < 1e-5
    assert A.shape[0] == B.shape[1] <= q
    assert error.norm == pytest.approx(np.linalg.norm(dense), rel=1e-6)
    assert error.error == pytest.approx(np.linalg.norm(S[q:]), rel=1e-6, abs=1e-5)
    assert error.relative == pytest.approx(np.linalg.norm(dense - best) / np.linalg.norm(dense), abs=1e-6)
    # Neither factor is large where the other is small: half precision has little room.
    assert torch.allclose(B.square().sum(dim=0), A.square().sum(dim=1), rtol=1e-4)


def test_a_change_of_zero_is_approximated_without_an_error():
    B, A, error = truncated(Delta(((torch.randn(5, 2), torch.zeros(2, 4)),), 1.0), 1)
    assert not (B @ A).any() and error.relative == 0.0
    assert total([error]) == 0.0 and total([]) == 0.0


def test_the_total_is_that_of_all_layers_put_together():
    layers = [LayerError("a", 4, 3.0, 1.0), LayerError("b", 4, 4.0, 2.0)]
    assert total(layers) == pytest.approx((5 / 25) ** 0.5)

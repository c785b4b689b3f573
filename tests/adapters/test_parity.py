"""Against PEFT's own `pissa` and `mica`: the same function at the start, and the same steps from there."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from adapters.steps import adapt, logits, sgd_steps
from milora.adapters import SpectralLinear

R, ALPHA = 8, 16


def peft_twin(model, init):
    config = LoraConfig(r=R, lora_alpha=ALPHA, init_lora_weights=init, target_modules="all-linear")
    return get_peft_model(model, config)


def layers(model):
    return {n: m for n, m in model.named_modules() if hasattr(m, "base_layer")}


@pytest.mark.parametrize("method", ["pissa", "mica"])
def test_factors_are_pefts(base, method):
    ours = layers(adapt(base(), method, r=R, lora_alpha=ALPHA))
    theirs = layers(peft_twin(base(), method))
    assert set(ours) == set(theirs)
    assert len(ours) == 14
    for name, mine in ours.items():
        assert isinstance(mine, SpectralLinear)
        B, A = theirs[name].lora_B["default"].weight, theirs[name].lora_A["default"].weight
        L0 = mine.spectral_L0["default"]
        if method == "pissa":
            assert torch.allclose(L0 @ mine.spectral_R0["default"], B @ A, atol=2e-5)
        else:
            assert torch.allclose(L0 @ L0.T, B @ B.T, atol=2e-5)  # the same subspace


@pytest.mark.parametrize("method", ["pissa", "mica"])
def test_training_goes_where_pefts_goes(base, ids, method):
    """After SGD steps, whose path does not depend on the signs of singular vectors, the logits agree."""
    found = []
    for model in (adapt(base(), method, r=R, lora_alpha=ALPHA, lora_dropout=0.0), peft_twin(base(), method)):
        sgd_steps(model, ids)
        found.append(logits(model, ids))
    assert torch.allclose(found[0], found[1], atol=2e-4, rtol=0)
    assert not torch.allclose(found[0], logits(base(), ids), atol=2e-2, rtol=0)


def test_milora_and_pissa_move_the_weight_inside_their_subspaces(base, ids):
    """The change of the weight after training lies where the method says: milora at the bottom, pissa at the top."""
    share = {}
    for method in ("milora", "pissa"):
        model = adapt(base(), method, r=R, lora_dropout=0.0)
        sgd_steps(model, ids, steps=1, lr=0.1)
        layer = model.get_submodule("base_model.model.model.layers.1.mlp.down_proj")
        U, _, Vh = torch.linalg.svd(layer.base_layer.weight.detach())
        dW = layer.get_delta_weight("default")
        for part, (u, v) in {"bottom": (U[:, -R:], Vh[63 - R + 1 : 64]), "top": (U[:, :R], Vh[:R])}.items():
            # dW = L0 G' + G'' R0: what neither factor's space holds is zero to first order
            rest = dW - u @ (u.T @ dW) - (dW @ v.T) @ v + u @ (u.T @ dW @ v.T) @ v
            share[method, part] = float(rest.norm() / dW.norm())
    assert share["milora", "bottom"] < 0.02 < 0.5 < share["milora", "top"]
    assert share["pissa", "top"] < 0.02 < 0.5 < share["pissa", "bottom"]

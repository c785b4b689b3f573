"""How far the first steps go: by hand in float64, and against factors that Adam really moved."""

import math

import numpy as np
import pytest
import torch

from milora.linalg import Decomposition
from milora.methods import METHODS, Choice, Factors, get_method
from milora.methods.first_steps import diagonal, full_step, lora_step, pair_step, spectral_step

SHAPE = (96, 160)  # (out, in)
R = 4


@pytest.fixture(scope="module")
def W() -> torch.Tensor:
    return torch.randn(*SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def by_hand(W: torch.Tensor) -> dict[str, float]:
    """The table in the module's docstring, by numpy's singular values, for s = 1/2 where there is a scale."""
    S = np.linalg.svd(W.numpy(), compute_uv=False)
    out, in_ = W.shape
    drawn = torch.randperm(len(S), generator=torch.Generator().manual_seed(5))[:R].numpy()
    s = 0.5
    return {
        "milora": s * math.sqrt((out + in_) * S[-R:].sum() / s),
        "pissa": s * math.sqrt((out + in_) * S[:R].sum() / s),
        "random_components": s * math.sqrt((out + in_) * S[drawn].sum() / s),
        "mica": s * math.sqrt(in_ * R),
        "lora_xs": s * math.sqrt(R * np.square(S[:R]).sum()),
        "svf": np.linalg.norm(W.numpy()),
        "svft": math.sqrt(len(S)),
    }


def choice(method: str, **settings) -> Choice:
    scale = 0.5 if get_method(method).ranked else 1.0
    return Choice(R, scale, generator=torch.Generator().manual_seed(5), **settings)


def step(W: torch.Tensor, method: str, **settings) -> float | None:
    asked = choice(method, **settings)
    return spectral_step(get_method(method), asked, get_method(method).factors(Decomposition(W), asked), SHAPE)


def test_every_method_of_the_registry_is_predicted_as_the_table_says(W):
    expected = by_hand(W)
    assert expected.keys() == METHODS.keys()
    for method, value in expected.items():
        assert step(W, method) == pytest.approx(value, rel=1e-6), method


def test_singular_values_alone_tell_as_much_as_the_weight(W):
    S = diagonal(torch.linalg.svdvals(W))
    for method in METHODS:
        asked = choice(method)
        from_values = spectral_step(get_method(method), asked, get_method(method).factors(S, asked), SHAPE)
        assert from_values == pytest.approx(step(W, method), rel=1e-6), method
    assert step(W, "svft", pattern="banded", d=2) == pytest.approx(math.sqrt(96 * 5 - 2 * 3), rel=1e-6)
    assert step(W, "svft", pattern="random", entries=77) == pytest.approx(math.sqrt(77), rel=1e-6)


def test_a_triplet_of_nothing_moves_as_mica_would_have_it():
    # W = diag(4, 1, 0): the zero triplet keeps its left vector, and R alone moves there.
    W = torch.diag(torch.tensor([4.0, 1.0, 0.0], dtype=torch.float64))
    asked = Choice(2, 1.0)
    moved = spectral_step(get_method("milora"), asked, get_method("milora").factors(Decomposition(W), asked), (3, 3))
    assert moved == pytest.approx(math.sqrt(3 * (1 + 1) + 3 * 1), rel=1e-9)


def test_a_magnitude_adds_a_step_along_each_row(W):
    asked = choice("milora")
    factors = get_method("milora").factors(Decomposition(W), asked)
    plain, with_it = (spectral_step(get_method("milora"), asked, factors, SHAPE, m) for m in (False, True))
    assert with_it == pytest.approx(math.sqrt(plain**2 + SHAPE[0]), rel=1e-12)
    assert lora_step(SHAPE, R, 2.0, True) == pytest.approx(math.sqrt(4 * 96 * R / 3 + 96), rel=1e-12)


def test_a_start_that_is_not_the_base_is_not_predicted(W):
    assert all(step(W, method, as_published=True) is None for method in ("lora_xs", "svf", "svft"))


def test_lora_by_its_start_and_in_expectation():
    A = torch.nn.init.kaiming_uniform_(
        torch.empty(64, 4096), a=math.sqrt(5), generator=torch.Generator().manual_seed(1)
    )
    B = torch.zeros(512, 64)
    assert pair_step(2.0, B, A) == pytest.approx(2 * math.sqrt(512) * float(A.double().norm()), rel=1e-6)
    assert lora_step((512, 4096), 64, 2.0) == pytest.approx(pair_step(2.0, B, A), rel=0.01)
    assert full_step((3, 12)) == 6.0


@pytest.mark.parametrize("method", ["milora", "pissa", "random_components", "mica", "lora_xs", "svf", "svft"])
def test_adam_moves_the_weight_as_far_as_is_said(W, method):
    # One step of torch's own Adam on a loss of the adapted weight, with the factors themselves as parameters.
    asked, lr = choice(method), 1e-4
    start: Factors = get_method(method).factors(Decomposition(W), asked)
    trains, core = get_method(method).trains, get_method(method).core(start.L0.shape[1], asked)
    L = start.L0.clone().requires_grad_("L" in trains)
    R0 = torch.zeros(start.L0.shape[1], SHAPE[1], dtype=W.dtype) if start.R0 is None else start.R0
    R_ = R0.clone().requires_grad_("R" in trains)
    c = torch.zeros(core.size if core else 1, dtype=W.dtype, requires_grad=core is not None)

    def adapted() -> torch.Tensor:
        between = core.dense(c, start.indices) if core else torch.eye(L.shape[1], dtype=W.dtype)
        return asked.scale * (L @ between @ R_)

    before = adapted().detach().clone()
    x, y = (torch.randn(n, 6, generator=torch.Generator().manual_seed(n), dtype=W.dtype) for n in SHAPE[::-1])
    optimizer = torch.optim.Adam([p for p in (L, R_, c) if p.requires_grad], lr=lr)
    (adapted() @ x - y).square().mean().backward()  # a gradient that knows nothing of W's singular vectors
    optimizer.step()
    moved = float((adapted().detach() - before).norm()) / lr
    # What is left out is how far the two terms agree where L and R train; it falls with r / sqrt(out in).
    assert moved == pytest.approx(step(W, method), rel=0.1 if "L" in trains else 1e-4)

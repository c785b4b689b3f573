"""The pair's own gradients against autograd's of the formula, whatever trains and in whatever precision."""

import pytest
import torch

from milora.methods import Bracket

OUT, IN, R, S = 7, 9, 3, 1.5
SHAPES = {"x": (2, 5, IN), "L0": (OUT, R), "R0": (R, IN), "dL": (OUT, R), "dR": (R, IN)}


def drawn(dtype=torch.float64):
    g = torch.Generator().manual_seed(1)
    return {n: torch.randn(*shape, dtype=torch.float64, generator=g).to(dtype) for n, shape in SHAPES.items()}


def formula(x, L0, R0, dL, dR):
    L, R_ = L0 + dL, R0 + dR
    return S * x @ (L @ R_ - L0 @ R0).T


def ours(x, L0, R0, dL, dR):
    return Bracket(S, L0, R0, dL, dR)(x)


@pytest.mark.parametrize("wanted", [("x", "dL", "dR"), ("dL",), ("dR", "x"), ("x",)])
def test_values_and_gradients_are_the_formulas(wanted):
    values = {n: t.requires_grad_(n in wanted) for n, t in drawn().items()}
    weights = torch.randn(2, 5, OUT, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    results = []
    for function in (formula, ours):
        y = function(**values)
        results.append((y, *torch.autograd.grad((y * weights).sum(), [values[n] for n in wanted])))
    for theirs, mine in zip(*results, strict=True):
        assert torch.allclose(theirs, mine, atol=1e-12)


def test_gradcheck_and_a_single_vector():
    values = {n: t.requires_grad_(n in ("x", "dL", "dR")) for n, t in drawn().items()}
    assert torch.autograd.gradcheck(lambda x, dL, dR: ours(x, values["L0"], values["R0"], dL, dR),
                                    [values[n] for n in ("x", "dL", "dR")])  # fmt: skip
    x = values["x"][0, 0]
    ours(x, **{n: t for n, t in values.items() if n != "x"}).sum().backward()
    assert values["x"].grad.abs().sum() > 0


def test_under_autocast_the_gradients_come_in_the_factors_precision():
    values = {n: t.requires_grad_(n in ("x", "dL", "dR")) for n, t in drawn(torch.float32).items()}
    exact = torch.autograd.grad(formula(**values).square().sum(), [values[n] for n in ("x", "dL", "dR")])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = ours(**values)
    assert y.dtype == torch.bfloat16
    found = torch.autograd.grad(y.float().square().sum(), [values[n] for n in ("x", "dL", "dR")])
    for mine, right in zip(found, exact, strict=True):
        assert mine.dtype == torch.float32
        assert float((mine - right).norm() / right.norm()) < 0.02


def test_the_start_is_zero_to_the_last_bit():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        values = drawn(dtype)
        values["dL"].zero_()
        values["dR"].zero_()
        assert not bool(ours(**values).any())


def test_compiled_without_a_break():
    values = {n: t.requires_grad_(n in ("x", "dL", "dR")) for n, t in drawn(torch.float32).items()}
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    wanted = [values[n] for n in ("x", "dL", "dR")]
    eager = torch.autograd.grad(ours(**values).square().sum(), wanted)
    found = torch.autograd.grad(compiled(**values).square().sum(), wanted)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(eager, found, strict=True))


@pytest.mark.parametrize("trains", ["both", "right"])
def test_pair_terms_and_dense_are_one_matrix(trains):
    v = drawn()
    bracket = Bracket(S, v["L0"], v["R0"], v["dL"], v["dR"]) if trains == "both" else Bracket(S, v["L0"], dR=v["dR"])
    P, Q = bracket.pair()
    dense = bracket.dense()
    assert torch.allclose(S * P @ Q, dense, atol=1e-12)
    assert torch.allclose(S * sum(p @ q for p, q in bracket.terms()), dense, atol=1e-12)
    assert torch.allclose(v["x"] @ dense.T, bracket(v["x"]), atol=1e-12)

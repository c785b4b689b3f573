"""Each measurement of a changed weight: against numpy in float64, and where its value is known beforehand."""

import numpy as np
import pytest
import torch

from analysis.changed_weights import by_numpy, factors, random
from milora.adapters.delta import Delta
from milora.analysis import intruder_dimensions as intruding
from milora.analysis.amplification import amplification, projection, random_directions
from milora.analysis.analyse import measure
from milora.analysis.intruder_dimensions import intruder_dimensions
from milora.analysis.subspace_similarity import random_indices, similarity
from milora.analysis.update_spectrum import decompose, effective_rank
from milora.errors import MiloraError
from milora.linalg import bottom, full, top

CHANGES = {
    "low_rank": (random(40, 28), factors(40, 28, (3,), 1)),
    "joined": (random(28, 40), factors(28, 40, (4, 4), 2)),
    "wide_factors": (random(24, 30), factors(24, 30, (24,), 3, 0.1)),
    "dense": (random(36, 24), 0.02 * random(36, 24, 4)),
    "dense_wide": (random(24, 36), 0.5 * random(24, 36, 5)),
    "rank_one": (random(20, 20), factors(20, 20, (1,), 6)),
    "strong": (random(30, 30), factors(30, 30, (2,), 7, 5.0)),
    # Above the size that is decomposed as a whole, with the falling singular values that make the top well defined.
    "many": (random(300, 280) @ torch.diag(0.97 ** torch.arange(280)), factors(300, 280, (4,), 8, 0.1)),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("r", [1, 4])
def test_a_module_equals_numpy_in_float64(name: str, r: int):
    W, dW = CHANGES[name]
    found = measure("layers.0.q", W, dW, r, seed=3)
    indices = random_indices(min(W.shape), r, "layers.0.q", 3).tolist()
    dense = dW.dense() if isinstance(dW, Delta) else dW
    wanted = by_numpy(W, dense, r, indices)
    for key in ("norm_W", "norm_dW", "relative", "effective_rank"):
        assert found[key] == pytest.approx(wanted[key], rel=1e-5), key
    for side in ("left", "right"):
        for part, value in wanted["phi"][side].items():
            assert found["phi"][side][part] == pytest.approx(value, rel=2e-3, abs=2e-5), (side, part)
    for of in ("dW", "W"):
        for key, value in wanted[of].items():
            assert found["projection"][of][key] == pytest.approx(value, rel=2e-4), (of, key)
    spectrum = found["spectrum"] + [0.0] * (len(wanted["spectrum"]) - len(found["spectrum"]))
    assert spectrum == pytest.approx(wanted["spectrum"], rel=1e-5, abs=1e-5 * wanted["spectrum"][0])
    assert len(found["spectrum"]) <= 2 * r and found["intruders"] == wanted["intruders"]
    assert found["shape"] == list(W.shape) and found["layer"] == 0


@pytest.mark.parametrize("name", ["low_rank", "joined", "strong"])
def test_factors_and_their_product_measure_alike(name: str):
    W, dW = CHANGES[name]
    by_factors, by_matrix = measure("q", W, dW, 4), measure("q", W, dW.dense(), 4)
    for key in ("phi", "projection"):
        for one, other in zip(by_factors[key].values(), by_matrix[key].values(), strict=True):
            assert one == pytest.approx(other, rel=1e-3, abs=1e-5)
    assert by_factors["directions"] == by_matrix["directions"]
    assert by_factors["norm_dW"] == pytest.approx(by_matrix["norm_dW"], rel=1e-5)


def test_a_change_by_factors_is_not_made_to_decompose_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Delta, "dense", lambda self: pytest.fail("was made"))
    update = decompose(factors(64, 80, (3, 3)), 4)
    assert update.U.shape == (64, 4) and update.Vh.shape == (4, 80) and len(update.S) == 6


@pytest.mark.parametrize("part", ["top", "bottom"])
def test_a_change_inside_a_subspace_has_phi_one(part: str):
    W, r = random(40, 30), 5
    svd = {"top": top, "bottom": bottom}[part](W, r)
    found = measure("q", W, svd.U @ random(r, r, 1) @ svd.Vh, r)["phi"]
    other = {"top": "bottom", "bottom": "top"}[part]
    for side in ("left", "right"):
        assert found[side][part] == pytest.approx(1, abs=1e-5) and found[side][other] == pytest.approx(0, abs=1e-5)
    # Only the left side is confined where the left factor is frozen, as MiCA's is.
    mica = measure("q", W, svd.U @ random(r, 30, 1), r)["phi"]
    assert mica["left"][part] == pytest.approx(1, abs=1e-5) and mica["right"][part] < 0.5


def test_a_change_that_knows_nothing_of_the_weight_is_at_chance():
    m, n, r = 60, 40, 6
    found = [measure(f"q.{i}", random(m, n, i), random(m, n, 1000 + i), r)["phi"] for i in range(60)]
    for side, chance in (("left", r / m), ("right", r / n)):
        for part in ("top", "bottom", "random"):
            assert np.mean([phi[side][part] for phi in found]) == pytest.approx(chance, rel=0.12), (side, part)


def test_a_change_of_few_directions_is_divided_by_their_number():
    W = random(40, 30)
    svd = top(W, 5)
    found = measure("q", W, svd.U[:, :2] @ random(2, 2, 1) @ svd.Vh[:2], 5)
    assert found["directions"] == 2
    assert found["phi"]["left"]["top"] == pytest.approx(1, abs=1e-5)
    assert found["phi"]["right"]["bottom"] == pytest.approx(0, abs=1e-5)


def test_the_projection_of_a_change_of_rank_2r_is_over_its_top_r():
    W, r = random(50, 40), 4
    two = measure("q", W, factors(50, 40, (r, r), 1), r)
    one = measure("q", W, factors(50, 40, (r,), 1), r)
    assert two["projection"]["dW"]["dW"] == pytest.approx(np.linalg.norm(two["spectrum"][:r]), rel=1e-5)
    assert two["projection"]["dW"]["dW"] < 0.95 * two["norm_dW"]
    assert len(two["spectrum"]) == 2 * r and len(one["spectrum"]) == r
    assert one["projection"]["dW"]["dW"] == pytest.approx(one["norm_dW"], rel=1e-5)


@pytest.mark.parametrize(
    ("of_W", "of_dW", "factor"),
    # The three rows of a table of the MiLoRA paper, by its own rounding
    [(1.82, 68.18, 37.46), (17.57, 55.79, 3.18), (1.86, 44.95, 24.17)],
)
def test_amplification_is_the_tables(of_W: float, of_dW: float, factor: float):
    assert round(amplification(of_W, of_dW) or 0, 2) == factor
    assert amplification(0.0, of_dW) is None and amplification(None, None) is None


def test_phi_of_known_spaces():
    eye = torch.eye(6)
    assert similarity(eye[:, :2], eye[:, :2]) == 1.0
    assert similarity(eye[:, :2], eye[:, 2:4]) == 0.0
    assert similarity(eye[:, :2], eye[:, 1:5]) == 0.5
    assert similarity(eye[:, :0], eye[:, 1:3]) is None
    assert projection(eye[:, :2], eye[:, :2], torch.diag(torch.arange(1.0, 7.0))) == pytest.approx(5**0.5)


def rotation(size: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(random(size, size, seed).double())[0].float()


def test_what_turns_or_scales_both_changes_no_share():
    W, dW = random(32, 24), factors(32, 24, (4, 4), 1).dense()
    left, right = rotation(32, 5), rotation(24, 6)
    plain, turned = measure("q", W, dW, 4), measure("q", left @ W @ right, left @ dW @ right, 4)
    scaled, flipped = measure("q", 8 * W, 8 * dW, 4), measure("q", W.T, dW.T, 4)
    for side, other in (("left", "right"), ("right", "left")):
        assert turned["phi"][side] == pytest.approx(plain["phi"][side], abs=1e-4)
        assert scaled["phi"][side] == pytest.approx(plain["phi"][side], abs=1e-5)
        assert flipped["phi"][side] == pytest.approx(plain["phi"][other], abs=1e-5)
    for same in (turned, scaled):
        assert same["projection"]["dW"]["amplification"] == pytest.approx(
            plain["projection"]["dW"]["amplification"], rel=1e-4
        )
        assert (same["intruders"], same["directions"]) == (plain["intruders"], plain["directions"])
    assert turned["spectrum"] == pytest.approx(plain["spectrum"], rel=1e-4)
    assert scaled["spectrum"] == pytest.approx([8 * s for s in plain["spectrum"]], rel=1e-4)
    assert scaled["relative"] == pytest.approx(plain["relative"], rel=1e-5)


def test_effective_rank_of_known_spectra():
    assert effective_rank(torch.ones(5)) == pytest.approx(5)
    assert effective_rank(torch.tensor([3.0, 0.0])) == pytest.approx(1)
    assert effective_rank(torch.zeros(3)) == 0.0


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 1.0, 3.0])
@pytest.mark.parametrize("shape", [(30, 20), (20, 30), (12, 6)])
def test_intruders_equal_the_definition_whatever_is_known(shape: tuple[int, int], share: float):
    W, dW = random(*shape), share * factors(*shape, (2,), 9).dense()
    U = np.linalg.svd(W.double().numpy(), full_matrices=False)[0]
    tuned = np.linalg.svd((W + dW).double().numpy(), full_matrices=False)[0]
    for k, epsilon in ((10, 0.5), (3, 0.8), (20, 0.3)):
        wanted = int((np.abs(U.T @ tuned[:, :k]).max(axis=0) < epsilon).sum())
        for known in (None, top(W, 1).U, top(W, 5).U, full(W).U):
            assert intruder_dimensions(W, dW, k=k, epsilon=epsilon, known=known) == wanted


def test_a_strong_direction_outside_a_weight_is_an_intruder(monkeypatch: pytest.MonkeyPatch):
    W = random(30, 10)
    outside = torch.linalg.qr(torch.cat([W, random(30, 1, 2)], dim=1))[0][:, -1:]  # orthogonal to all columns of W
    strong = 10 * outside @ random(1, 10, 3)
    assert intruder_dimensions(W, strong) == 1
    assert intruder_dimensions(W, 1e-4 * strong) == 0
    inside = top(W, 1)
    monkeypatch.setattr(intruding, "full", lambda W: pytest.fail("decomposed as a whole"))
    # What is known decides: the strongest direction only becomes stronger.
    assert intruder_dimensions(W, 3 * inside.S * inside.U @ inside.Vh, k=3, known=top(W, 5).U) == 0


def test_a_change_of_zero_has_no_directions():
    found = measure("q", random(12, 9), torch.zeros(12, 9), 3)
    assert (found["norm_dW"], found["directions"], found["intruders"], found["effective_rank"]) == (0.0, 0, 0, 0.0)
    assert set(found["phi"]["left"].values()) == set(found["phi"]["right"].values()) == {None}
    assert found["projection"]["dW"] == {"W": None, "dW": None, "amplification": None}
    assert found["projection"]["W"]["dW"] == found["projection"]["random"]["dW"] == 0.0
    assert found["projection"]["random"]["W"] > 0
    by_factors = measure("q", random(12, 9), Delta(((random(12, 2), torch.zeros(2, 9)),), 1.0), 3)
    assert by_factors["phi"] == found["phi"] and by_factors["directions"] == 0


def test_a_weight_of_zero_has_no_ratios():
    found = measure("q", torch.zeros(12, 9), random(12, 9), 3)
    assert found["relative"] is found["projection"]["dW"]["amplification"] is None


def test_random_directions_depend_on_seed_and_module_alone():
    W, dW = random(40, 30), factors(40, 30, (4,))
    first = measure("q", W, dW, 4, seed=1)
    assert measure("q", W, dW, 4, seed=1) == first
    assert measure("q", W, dW, 4, seed=2)["phi"]["left"]["random"] != first["phi"]["left"]["random"]
    assert measure("k", W, dW, 4, seed=1)["projection"]["random"] != first["projection"]["random"]
    assert measure("k", W, dW, 4, seed=2)["phi"]["left"]["top"] == first["phi"]["left"]["top"]
    U = random_directions(20, 3, torch.Generator().manual_seed(0))
    assert torch.allclose(U.T @ U, torch.eye(3, dtype=torch.float64), atol=1e-12)


def test_the_random_projection_is_that_of_a_random_matrix():
    W, r = random(60, 50), 5
    found = [measure(f"q.{i}", W, factors(60, 50, (2,)), r)["projection"]["random"]["W"] ** 2 for i in range(60)]
    # E ||U^T W V||^2 = r^2 ||W||^2 / (m n) for independent uniformly random U and V.
    assert np.mean(found) == pytest.approx(r * r * float(W.square().sum()) / (60 * 50), rel=0.1)


def test_nan_is_refused():
    broken = random(12, 9)
    broken[3, 3] = float("nan")
    with pytest.raises(MiloraError, match="NaN or Inf"):
        measure("q", random(12, 9), broken, 3)

"""The certificate passes what is right and refuses what is not: each check by itself, and the strict proof."""

import dataclasses
import functools
import math

import pytest
import scipy.linalg
import torch

from linalg.matrices import CLASSES, gaussian, with_spectrum
from milora.linalg import Certificate, bottom, engine, top
from milora.linalg.certificate import Refused, _error, certify, norm_estimate, prove
from milora.linalg.krylov import NotConverged
from milora.linalg.parts import Part, deflated_values

SHAPE = (70, 50)
R = 8


def exact_part(W: torch.Tensor, indices: torch.Tensor) -> Part:
    """Triplets of W (m, n), m >= n, by LAPACK in float64."""
    U, S, V = all_triplets(W)
    return Part(U[:, indices], S[indices], V[:, indices], "lapack")


KNOWN: dict[int, tuple[torch.Tensor, ...]] = {}


def all_triplets(W: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """U, S, V of a matrix in float64, computed once for each."""
    if id(W) not in KNOWN:
        U, S, Vh = torch.linalg.svd(W.double(), full_matrices=False)
        KNOWN[id(W)] = (U, S, Vh.T, W)  # W too, so that its id is not given to another
    return KNOWN[id(W)][:3]


def bottom_part(W: torch.Tensor) -> Part:
    n = W.shape[1]
    return exact_part(W, torch.arange(n - R, n))


def test_the_right_part_passes():
    W = gaussian(SHAPE).float()
    found = certify(W, bottom_part(W), "bottom", norm_estimate(W), strict=True)
    assert found.strict and found.energy_bound is not None and 0 <= found.energy_bound < 1e-2
    assert max(found.residual_left, found.residual_right, found.orthonormality) < 1e-6
    assert found.worst >= min(found.residual_left, found.residual_right)
    assert Certificate.from_dict(found.as_dict()) == found


def spoiled(W: torch.Tensor) -> dict[str, tuple[Part, str]]:
    """Parts with one thing wrong each, and what should be said of it."""
    part = bottom_part(W)
    turned = part.V.clone()
    turned[:, 0] = torch.roll(turned[:, 0], 1)
    doubled = part.V.clone()
    doubled[:, 1] = doubled[:, 0]
    both = {"U": part.U.clone(), "V": doubled}
    both["U"][:, 1] = both["U"][:, 0]
    nan = part.U.clone()
    nan[0, 0] = math.nan
    wrong = {
        "a wrong vector": ({"V": turned}, "residual|orthonormality"),
        "a vector twice": (both, "orthonormality"),
        "a longer vector": ({"U": 1.01 * part.U}, "orthonormality"),
        "a wrong value": ({"S": part.S * 1.05}, "residual|energy"),
        "signs that do not match": ({"U": -part.U}, "residual"),
        "not a number": ({"U": nan}, "orthonormality"),
        "an iteration that has not ended": ({"estimate": 1e-2}, "estimate"),
        "a direction outside": ({"probe": 0.9}, "a direction outside"),
        "a direction just outside": ({"probe": 0.985}, "a direction outside"),
        "a probe that is not a number": ({"probe": math.nan}, "a direction outside"),
    }
    return {name: (dataclasses.replace(part, **change), said) for name, (change, said) in wrong.items()}


@pytest.mark.parametrize("name", sorted(spoiled(gaussian(SHAPE))))
def test_each_fault_is_named(name):
    W = gaussian(SHAPE).float()
    part, said = spoiled(W)[name]
    with pytest.raises(Refused, match=said):
        certify(W, part, "bottom", norm_estimate(W))


def with_tiny_bottom() -> torch.Tensor:
    S = torch.cat([torch.linspace(1, 0.1, SHAPE[1] - R), torch.linspace(2e-6, 1e-6, R)])
    return with_spectrum(SHAPE, S.double()).float()


@pytest.mark.parametrize(
    ("side", "angle", "said"),
    [("U", 2e-2, "residual"), ("V", 2e-2, "residual"), ("U", 1e-3, "energy"), ("V", 1e-3, "energy")],
)
def test_a_tiny_share_of_a_principal_direction_is_seen_on_either_side(side, angle, said):
    """One residual stays at rounding, for the values are tiny; the other, or else the energy of that side, says it."""
    W = with_tiny_bottom()
    part, first = bottom_part(W), exact_part(W, torch.tensor([0]))
    turned = getattr(part, side).clone()
    turned[:, 0] = math.cos(angle) * turned[:, 0] + math.sin(angle) * getattr(first, side)[:, 0]
    certify(W, part, "bottom", norm_estimate(W))
    with pytest.raises(Refused, match=f"^{said}"):
        certify(W, dataclasses.replace(part, **{side: turned}), "bottom", norm_estimate(W))


def test_values_that_are_off_by_little_are_seen_in_both_residuals():
    W = gaussian(SHAPE).float()
    part = exact_part(W, torch.arange(R))
    with pytest.raises(Refused, match=r"^residual"):
        certify(W, dataclasses.replace(part, S=part.S * (1 + 2e-5)), "top", norm_estimate(W))


def test_all_triplets_are_judged_by_the_dtypes_own_rounding():
    W = gaussian(SHAPE).float()
    part = exact_part(W, torch.arange(SHAPE[1]))
    certify(W, part, "full", 0.0)
    with pytest.raises(Refused, match="orthonormality"):
        certify(W, dataclasses.replace(part, U=part.U * (1 + 2e-5)), "full", 0.0)


def test_the_bound_of_the_energy_is_the_formulas():
    assert _error(torch.tensor([1.0, 0.5]), 1.0, 1e-6, 0.01, 1.0) == pytest.approx(0.01 + 1e-4, rel=1e-5)
    assert _error(torch.tensor([2.0, 1.0]), 1.0, 1e-6, 0.01, -1.0) == pytest.approx(0.01 + 1e-4, rel=1e-5)


@pytest.mark.parametrize("tiny", [1e-2, 1e-4])
def test_the_probe_looks_outside_the_part_alone(tiny):
    """Also where the part is so dominant that one step of the inverse leaves nothing else of a random block."""
    S = torch.cat([torch.full((31,), 2.0), torch.tensor([1.0]), torch.full((8,), tiny)])
    Q = torch.linalg.qr(gaussian((40, 40))).Q.float()
    generator = torch.Generator().manual_seed(0)
    found = deflated_values(
        lambda X: Q @ ((Q.T @ X) / S[:, None] ** 2), S[:, None] * Q.T, Q[:, 32:], generator, steps=4
    )
    assert float(found.min()) == pytest.approx(1.0, rel=0.01)


def test_the_probe_has_a_side():
    W = gaussian(SHAPE).float()
    part = dataclasses.replace(exact_part(W, torch.arange(R)), probe=1.1)
    with pytest.raises(Refused, match="a direction outside"):
        certify(W, part, "top", norm_estimate(W))
    certify(W, dataclasses.replace(part, probe=0.9), "top", norm_estimate(W))


@functools.cache
def attempts() -> list[tuple[torch.Tensor, str, list[int]]]:
    """(W, kind, indices): each takes the wrong triplets, every one of them exact: one dropped, one put in its place."""
    found = []
    spectra = [
        torch.linspace(1, 0.02, 40), torch.logspace(0, -4, 40), torch.arange(1, 41).double() ** -0.3,
        1 + 1e-3 * torch.arange(40, 0, -1), torch.linspace(1, 0.9, 40),
    ]  # fmt: skip
    for number, S in enumerate(spectra):
        for shape in ((40, 40), (64, 40)):
            W = with_spectrum(shape, S.double(), seed=number)
            for r in (1, 4, 9):
                right = {"bottom": list(range(40 - r, 40)), "top": list(range(r))}
                for kind, indices in right.items():
                    outside = [i for i in range(40) if i not in indices]
                    edge = outside[-1] if kind == "bottom" else outside[0]
                    for dropped in indices:
                        for put_in in {edge, outside[len(outside) // 2], outside[0], outside[-1]}:
                            found.append((W, kind, sorted({*indices, put_in} - {dropped})))
                        # Dropped without a replacement: wrong unless it is the edge itself.
                        rest = [i for i in indices if i != dropped]
                        if rest and dropped != (indices[0] if kind == "bottom" else indices[-1]):
                            found.append((W, kind, rest))
    return found


def test_the_strict_certificate_refuses_every_missing_triplet():
    tried, passed = attempts(), []
    assert len(tried) >= 500
    for W, kind, indices in tried:
        part = exact_part(W, torch.tensor(indices))
        try:
            prove(W, part, kind, norm_estimate(W))
            passed.append((kind, indices))
        except Refused:
            pass
    assert not passed, f"{len(passed)} of {len(tried)} wrong parts were proven: {passed[:3]}"


def test_the_strict_certificate_accepts_every_right_part():
    judged = 0
    for W, kind, indices in attempts():
        r = len(indices)
        right = torch.arange(40 - r, 40) if kind == "bottom" else torch.arange(r)
        bound = prove(W, exact_part(W, right), kind, norm_estimate(W))
        assert 0 <= bound < 1e-4
        judged += 1
    assert judged >= 500


@pytest.mark.parametrize("ask", [bottom, top])
@pytest.mark.parametrize("name", sorted(CLASSES))
def test_strict_on_request_for_every_class(name, ask):
    W = CLASSES[name]((320, 300)).float()
    found = ask(W, 12, strict=True)
    assert found.certificate.strict
    exact = torch.linalg.svdvals(W.double())
    optimum = float((exact[-12:] if ask is bottom else exact[:12]).square().sum())
    energy = float(found.S.double().square().sum())
    resolved = max(energy, 12 * (4 * torch.finfo(torch.float32).eps * float(exact[0])) ** 2)
    assert abs(energy - optimum) <= (found.certificate.energy_bound + 1e-6) * resolved


@pytest.mark.parametrize("ask", [bottom, top])
def test_strict_for_a_float64_weight_of_zeros(ask):
    found = ask(torch.zeros(10, 8, dtype=torch.float64), 3, strict=True)
    assert found.certificate.strict and found.certificate.energy_bound == 0 and found.S.tolist() == [0, 0, 0]


def test_what_is_refused_is_computed_again_and_named(monkeypatch: pytest.MonkeyPatch):
    W = gaussian((320, 320)).float()
    right = bottom(W, 8)
    assert right.certificate.algorithm == "lu"

    def wrong(A, r, b, tolerance, generator):
        return dataclasses.replace(exact_part(A, torch.arange(300 - r, 300)), algorithm="lu", probe=0.2)

    monkeypatch.setattr(engine.lu, "bottom", wrong)
    found = bottom(W, 8)
    assert found.certificate.algorithm == "cholesky-float64" and found.certificate.refused == ("lu",)
    assert torch.allclose(found.S, right.S, rtol=1e-4)

    def never(*_, **__):
        raise NotConverged

    monkeypatch.setattr(engine.cholesky, "bottom", never)
    found = bottom(W, 8)
    assert found.certificate.algorithm == "gram" and found.certificate.refused == ("lu", "cholesky-float64")
    assert torch.allclose(found.S, right.S, rtol=1e-4)


@pytest.mark.parametrize("library", [torch.linalg, scipy.linalg], ids=["torch", "scipy"])
def test_lapack_that_does_not_converge_gives_way(library, monkeypatch: pytest.MonkeyPatch):
    def never(*_, **__):
        raise library.LinAlgError("did not converge")

    monkeypatch.setattr(engine.gram.scipy.linalg, "eigh", never)
    found = bottom(gaussian((40, 30)).float(), 4)
    assert found.certificate.algorithm == "lapack-float64" and found.certificate.refused == ("gram",)


def test_nothing_that_failed_is_given_out(monkeypatch: pytest.MonkeyPatch):
    W = gaussian((40, 30)).float()

    def wrong(A, indices, *_):
        part = exact_part(A, indices)
        return dataclasses.replace(part, U=part.U.roll(1, 0))

    monkeypatch.setattr(engine.gram, "part", wrong)
    assert bottom(W, 4).certificate.refused == ("gram",)
    monkeypatch.setattr(engine.lapack, "part", wrong)
    with pytest.raises(RuntimeError, match="no algorithm"):
        bottom(W, 4)


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_the_norm_estimate_is_a_lower_bound_within_a_factor_of_two(name):
    W = CLASSES[name]((90, 60))
    exact = float(torch.linalg.matrix_norm(W, 2))
    assert 0.5 * exact <= norm_estimate(W) <= exact * (1 + 1e-9)


def test_the_norm_estimate_begins_with_the_longest_row():
    W = torch.zeros(30, 20, dtype=torch.float64)
    W[7, 3] = 5.0
    W[0, 11] = 1e-3  # a row that is orthogonal to what is large
    assert norm_estimate(W) == pytest.approx(5.0)

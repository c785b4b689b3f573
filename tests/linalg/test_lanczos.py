"""The block Lanczos space: what it reads off H without a further application of T, and when it stops."""

from typing import Any

import pytest
import torch
from torch import Tensor

from linalg.matrices import gaussian, with_spectrum
from milora.linalg import bottom, golub_kahan, lanczos, top
from milora.linalg.krylov import CROWDED, HASTE, TIGHT, Clustered, NotConverged, haste
from milora.linalg.lanczos import LanczosSpace, settle
from milora.linalg.parts import Part

N, B, R = 300, 8, 12


def spaces(W: Tensor, blocks: int) -> dict[str, tuple[LanczosSpace, Tensor]]:
    """A space for the bottom, shifted, and one for the top of W (m, N), with their operators."""
    G = W.T @ W
    shift = 0.9 * float(torch.linalg.eigvalsh(G)[0])
    found = {}
    for name, T, mu in (("bottom", torch.linalg.inv(G - shift * torch.eye(N, dtype=G.dtype)), shift), ("top", G, 0.0)):
        space = LanczosSpace(lambda Q, T=T: T @ Q, T @ gaussian((N, B), seed=5), 200, name == "bottom", mu)
        assert all([space.grow() for _ in range(blocks)])
        found[name] = space, T
    return found


@pytest.mark.parametrize("name", ["bottom", "top"])
@pytest.mark.parametrize("tail", [-0.4, -1.0])
def test_h_is_the_operator_in_an_orthonormal_basis(name, tail):
    W = with_spectrum((400, N), torch.arange(1, N + 1).double() ** tail)
    space, T = spaces(W, 9)[name]
    p = space.p
    Q = space.Qt[: p + B].T
    assert torch.allclose(Q.T @ Q, torch.eye(p + B, dtype=Q.dtype), atol=1e-9)
    scale = float(torch.linalg.matrix_norm(T, 2))
    H = space.H[:p, :p].triu()
    assert torch.allclose(H, (Q[:, :p].T @ T @ Q[:, :p]).triu(), atol=1e-9 * scale)
    assert torch.allclose(Q @ space.H[: p + B, p - B : p], T @ Q[:, p - B : p], atol=1e-9 * scale)
    ritz = space.ritz(R)
    assert torch.allclose(space.applied(R), T @ ritz.V, atol=1e-9 * scale)
    mine = 1 / torch.linalg.eigvalsh(Q[:, :p].T @ T @ Q[:, :p]).flip(0)[:R] + space.shift
    values = mine if name == "bottom" else 1 / (mine - space.shift)
    assert torch.allclose(ritz.theta, values, rtol=1e-8)
    assert space.energy(R) == pytest.approx(float(values.sum()))


@pytest.mark.parametrize("name", ["bottom", "top"])
@pytest.mark.parametrize("tail", [-0.1, -0.3, -0.6, -1.2])
def test_what_is_left_is_known_within_the_caution(name, tail):
    W = with_spectrum((400, N), torch.arange(1, N + 1).double() ** tail)
    exact = torch.linalg.svdvals(W).square()
    optimum = float((exact[-R:] if name == "bottom" else exact[:R]).sum())
    space, judged = spaces(W, 2)[name][0], 0
    while space.grow():
        left = abs(space.energy(R) / optimum - 1)
        if 1e-9 < left < 1e-3:
            judged += 1
            assert left / lanczos.CAUTION <= space.remainder(R)[0] <= 3 * left
    assert judged >= 2


def test_a_cluster_at_the_edge_is_trusted_less():
    theta = torch.arange(1.0, 30.0).double()
    assert haste(theta, R, B, 1e-4) == 1
    theta[R - 1 : R + B // 2] = theta[R - 1] * (1 + 0.9 * CROWDED * torch.linspace(0, 1, B // 2 + 1))
    assert haste(theta, R, B, 1e-4) == HASTE
    theta[R + B // 2 - 1] = theta[R - 1] * (1 + 1.1 * CROWDED)
    assert haste(theta, R, B, 1e-4) == 1


def test_a_cluster_of_a_whole_block_is_not_trusted_unless_it_holds_everything():
    theta = torch.arange(1.0, 30.0).double()
    theta[2 : 2 + B] = 3 + 0.9 * TIGHT * R * torch.linspace(0, 1, B)
    with pytest.raises(Clustered):
        haste(theta, R, B, 1e-4)
    theta[2 : 2 + B] = 3 + 1.1 * TIGHT * R * torch.linspace(0, 1, B)
    assert haste(theta, R, B, 1e-4) == 1
    assert haste(1 + 1e-5 * torch.rand(29).double(), R, B, 1e-4) == HASTE


@pytest.mark.parametrize("ask", [bottom, top])
@pytest.mark.parametrize("seed", range(4))
def test_no_member_of_a_cluster_is_missing(ask, seed):
    """Clusters of two and a half blocks' members, a ten-thousandth wide."""
    noise = 1 + 1e-4 * torch.rand(N, generator=torch.Generator().manual_seed(seed)).double()
    S = (torch.linspace(1, 0.3, N // 20 + 1).double().repeat_interleave(20)[:N] * noise).sort(descending=True).values
    W = with_spectrum((N + 40 * seed, N), S, seed).float()
    exact = torch.linalg.svdvals(W.double())
    wanted = exact[-R - 8 :] if ask is bottom else exact[: R + 8]
    energy = float(ask(W, R + 8).S.double().square().sum())
    assert energy == pytest.approx(float(wanted.square().sum()), rel=1e-4)


def test_the_residual_is_that_of_singular_vectors():
    W = with_spectrum((400, N), torch.arange(1, N + 1).double() ** -0.4)
    found = spaces(W, 6)
    space, T = found["top"]
    ritz = space.ritz(R)
    sigma = ritz.theta.sqrt()
    exact = torch.linalg.vector_norm((T @ ritz.V) / sigma - sigma * ritz.V, dim=0).max() / sigma[0]
    assert space.residual(R) == pytest.approx(float(exact)) and space.residual(R) > 1e-3
    assert found["bottom"][0].residual(R) == 0


def test_a_top_with_little_energy_left_grows_until_its_residuals_are_small_too(monkeypatch: pytest.MonkeyPatch):
    space, _ = spaces(with_spectrum((400, N), torch.arange(1, N + 1).double() ** -0.4), 2)["top"]
    monkeypatch.setattr(lanczos, "RESIDUAL", 1e-5)
    settle(space, R, 1e-1, 1)
    assert 0 < space.residual(R) <= 1e-5


def test_no_room_is_no_result():
    space, _ = spaces(with_spectrum((400, N), torch.linspace(1, 0.95, N).double()), 2)["top"]
    with pytest.raises(NotConverged):
        settle(space, R, 1e-4, 4)


def test_a_used_up_rank_is_no_fault():
    """T X lies in the space from the fourth block on; what rounding leaves is a direction like any other."""
    W = with_spectrum((400, N), torch.cat([torch.linspace(2, 1, 20), torch.zeros(N - 20)]).double())
    space, _ = spaces(W + 1e-9 * gaussian((400, N)), 6)["top"]
    Q = space.Qt[: space.p].T
    assert torch.allclose(Q.T @ Q, torch.eye(space.p, dtype=Q.dtype), atol=1e-9)
    assert space.energy(R) == pytest.approx(float(torch.linspace(2, 1, 20).double()[:R].square().sum()), rel=1e-6)


def test_a_shortened_space_gives_whole_triplets():
    W = with_spectrum((900, 800), torch.arange(1, 801).double() ** -0.5).float()
    exact = torch.linalg.svdvals(W.double())[:R]
    part = golub_kahan.top(W, R, B, 8e-5, torch.Generator().manual_seed(1), shortened=True)
    U, S, V = part.U, part.S, part.V
    assert part.algorithm == "krylov-bfloat16"
    assert abs(float(S.square().sum() / exact.square().sum()) - 1) < 1e-4
    # Of the two residuals one is float32's own, although the space was built with eight bits.
    assert float(torch.linalg.vector_norm(W.double().T @ U - V * S, dim=0).max()) < 1e-6 * float(exact[0])
    assert float(torch.linalg.vector_norm(W.double() @ V - U * S, dim=0).max()) < 5e-3 * float(exact[0])


def test_where_a_shortened_space_fails_whole_products_are_taken(monkeypatch: pytest.MonkeyPatch):
    whole = golub_kahan.top

    def only_whole(*args: Any, shortened: bool = False) -> Part:
        if shortened:
            raise NotConverged
        return whole(*args)

    monkeypatch.setattr(golub_kahan, "shortens", lambda A: True)
    monkeypatch.setattr(golub_kahan, "top", only_whole)
    found = top(gaussian((400, N)).float(), R)
    assert found.certificate is not None
    assert found.certificate.algorithm == "krylov" and found.certificate.refused == ("krylov-bfloat16",)

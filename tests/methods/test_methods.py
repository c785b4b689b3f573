"""Which subspace each method takes: the papers' formulas in float64 numpy; and what the registry holds."""

import numpy as np
import pytest
import torch

from milora.errors import MiloraError
from milora.linalg import full
from milora.methods import METHODS, Bracket, Choice, get_method, magnitude_quotient, row_norms

SHAPES = [(24, 16), (16, 24), (20, 20)]
R, SCALE = 4, 2.0


def weight(shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def indices(name, k, choice_seed=11):
    if name == "milora":
        return np.arange(k - R, k)
    if name == "pissa":
        return np.arange(R)
    if name == "random_components":
        return np.sort(torch.randperm(k, generator=torch.Generator().manual_seed(choice_seed))[:R].numpy())
    raise AssertionError(name)


def test_the_registry_finds_every_file():
    assert set(METHODS) == {"milora", "pissa", "random_components", "mica", "lora_xs", "svf", "svft"}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["milora", "pissa", "random_components"])
def test_square_root_split_is_the_papers(name, shape):
    W = weight(shape)
    factors = METHODS[name].factors(full(W), Choice(R, SCALE, generator=torch.Generator().manual_seed(11)))
    U, S, Vt = np.linalg.svd(W.numpy(), full_matrices=False)
    i = indices(name, min(shape))
    part = U[:, i] @ np.diag(S[i]) @ Vt[i]
    assert np.allclose(SCALE * factors.L0.numpy() @ factors.R0.numpy(), part, atol=1e-12)
    root = np.sqrt(S[i] / SCALE)
    assert np.allclose(np.linalg.norm(factors.L0.numpy(), axis=0), root, atol=1e-12)
    assert np.allclose(np.linalg.norm(factors.R0.numpy(), axis=1), root, atol=1e-12)
    assert np.allclose(np.abs(factors.L0.numpy()), np.abs(U[:, i] * root), atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_mica_freezes_the_minor_left_vectors(shape):
    W = weight(shape)
    factors = METHODS["mica"].factors(full(W), Choice(R, SCALE))
    U = np.linalg.svd(W.numpy(), full_matrices=False)[0]
    assert np.allclose(np.abs(factors.L0.numpy()), np.abs(U[:, -R:]), atol=1e-10)
    assert factors.R0 is None


def test_middle_components_are_the_central_ones():
    W = torch.diag(torch.arange(10.0, 0.0, -1.0))
    factors = METHODS["random_components"].factors(full(W), Choice(R, 1.0, components="middle"))
    assert torch.allclose((factors.L0 @ factors.R0).diagonal(), torch.tensor([0.0, 0, 0, 7, 6, 5, 4, 0, 0, 0]))


def test_random_components_follow_their_seed():
    W = weight((30, 30))
    draw = [
        METHODS["random_components"].factors(full(W), Choice(R, 1.0, generator=torch.Generator().manual_seed(s))).L0
        for s in (1, 1, 2)
    ]
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])


def numpy_svd(W):
    U, S, Vt = np.linalg.svd(W.numpy(), full_matrices=False)
    return U, S, Vt


def changed(method, W, choice, trained):
    """W' - W in float64, as the layer would make it of a core's trained numbers."""
    made = METHODS[method].factors(full(W), choice)
    core = METHODS[method].core(made.L0.shape[1], choice)
    c = METHODS[method].values(trained, made.R0, choice)
    bracket = Bracket(choice.scale, made.L0, made.R0, core=core, c=c, indices=made.indices)
    return made, bracket.dense().numpy()


@pytest.mark.parametrize("shape", SHAPES)
def test_lora_xs_puts_the_singular_values_on_the_input(shape):
    """dW = s U_r C S_r V_r^T; signs of u_i and v_i change C's, so that C is seen through U^T U_ours."""
    W, C = weight(shape), torch.randn(R, R, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    made, dW = changed("lora_xs", W, Choice(R, SCALE), C.flatten())
    U, S, Vt = numpy_svd(W)
    signs = np.sign((U[:, :R] * made.L0.numpy()).sum(0))
    assert np.allclose(dW, SCALE * U[:, :R] @ (signs[:, None] * C.numpy() * signs) @ np.diag(S[:R]) @ Vt[:R])


@pytest.mark.parametrize("shape", SHAPES)
def test_svf_scales_each_singular_value(shape):
    W = weight(shape)
    z = torch.rand(min(shape), dtype=torch.float64, generator=torch.Generator().manual_seed(7)) + 0.5
    dW = changed("svf", W, Choice(1, 1.0), z - 1)[1]
    U, S, Vt = numpy_svd(W)
    assert np.allclose(W.numpy() + dW, U @ np.diag(S * z.numpy()) @ Vt)


@pytest.mark.parametrize("shape", SHAPES)
def test_svf_as_published_keeps_the_nuclear_norm(shape):
    W, k = weight(shape), min(shape)
    x = torch.randn(k, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    choice = Choice(1, 1.0, as_published=True, generator=torch.Generator().manual_seed(1))
    made, dW = changed("svf", W, choice, x)
    U, S, Vt = numpy_svd(W)
    z = 1 / (1 + np.exp(-x.numpy()))
    assert np.allclose(W.numpy() + dW, U @ np.diag(S * z) @ Vt * S.sum() / (S * z).sum())
    # Their start: N(0.1, 0.01^2); a constant x is the identity.
    assert abs(float(made.C.mean()) - 0.1) < 0.02 and 0.003 < float(made.C.std()) < 0.03
    assert np.allclose(changed("svf", W, choice, torch.full((k,), 0.1, dtype=torch.float64))[1], 0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pattern", ["plain", "banded", "random"])
def test_svft_adds_m_between_all_singular_vectors(shape, pattern):
    W, k = weight(shape), min(shape)
    d = 0 if pattern == "plain" else 2
    choice = Choice(1, 1.0, pattern=pattern, d=d, generator=torch.Generator().manual_seed(3))
    size = METHODS["svft"].core(k, choice).size
    M = torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    made, dW = changed("svft", W, choice, M)
    U, _, Vt = numpy_svd(W)
    signs = np.sign((U * made.L0.numpy()).sum(0))
    dense = signs[:, None] * (U.T @ dW @ Vt.T) * signs  # M again, if dW = U M V^T
    assert np.allclose(U @ (signs[:, None] * dense * signs) @ Vt, dW)
    where = np.argwhere(np.abs(dense) > 1e-10)
    assert len(where) == size == k * (2 * d + 1) - d * (d + 1)
    if pattern == "random":
        assert np.array_equal(where, made.indices.T.numpy())
        assert np.abs(where[:, 0] - where[:, 1]).max() > d
    else:
        assert np.abs(where[:, 0] - where[:, 1]).max() == d
    assert np.allclose(dense[where[:, 0], where[:, 1]], M.numpy())


def test_svft_top_k_is_where_left_and_right_vectors_are_most_alike():
    W = weight((20, 20))
    made = METHODS["svft"].factors(full(W), Choice(1, 1.0, pattern="top_k", entries=31))
    U, _, Vt = numpy_svd(W)
    alike = np.abs(U.T @ Vt.T)
    wanted = sorted(zip(*np.unravel_index(np.argsort(-alike, axis=None)[:31], alike.shape), strict=True))
    assert [tuple(p) for p in made.indices.T.tolist()] == wanted
    with pytest.raises(MiloraError, match="pattern: got 'top_k' for a 24 x 16 weight, allowed only for square"):
        METHODS["svft"].factors(full(weight((24, 16))), Choice(1, 1.0, pattern="top_k", d=1))


def test_svft_as_published_starts_at_random_behind_a_gate():
    W = weight((200, 200))
    choice = Choice(1, 1.0, pattern="banded", d=4, as_published=True, generator=torch.Generator().manual_seed(3))
    size = METHODS["svft"].core(200, choice).size
    assert METHODS["svft"].count(200, 200, choice) == size + 1
    C = METHODS["svft"].factors(full(W), choice).C.double()
    assert len(C) == size + 1 and float(C[-1]) == 0
    assert float(C[:-1].std()) == pytest.approx((2 / size) ** 0.5, rel=0.1)
    dW = changed("svft", W, choice, C)[1]
    assert np.linalg.norm(dW) == pytest.approx(0.5 * 2**0.5, rel=0.05)  # sigmoid(0) sqrt(N 2/N)


def test_lora_xs_as_published_starts_where_it_was_drawn():
    made = METHODS["lora_xs"].factors(full(weight((40, 40))), Choice(30, 1.0, as_published=True))
    assert float(made.C.std()) == pytest.approx(1e-5, rel=0.1)
    assert METHODS["lora_xs"].factors(full(weight((40, 40))), Choice(30, 1.0)).C is None


def test_svd_rank_keeps_the_largest_triplets_and_the_rest_of_the_weight():
    W = weight((24, 16))
    dW = changed("svf", W, Choice(1, 1.0, svd_rank=5), torch.full((5,), -1.0, dtype=torch.float64))[1]
    U, S, Vt = numpy_svd(W)
    assert np.allclose(W.numpy() + dW, U[:, 5:] @ np.diag(S[5:]) @ Vt[5:])


@pytest.mark.parametrize("name", ["mica", "lora_xs"])
@pytest.mark.parametrize("components", ["top", "bottom", "middle", "random", (0, 3, 9, 15)])
def test_a_split_takes_any_components(name, components):
    W = weight((24, 16))
    choice = Choice(R, 1.0, components=components, generator=torch.Generator().manual_seed(11))
    L0 = METHODS[name].factors(full(W), choice).L0.numpy()
    drawn = torch.randperm(16, generator=torch.Generator().manual_seed(11))[:R].sort().values.tolist()
    i = {"top": range(4), "bottom": range(12, 16), "middle": range(6, 10), "random": drawn}.get(components, components)
    assert np.allclose(np.abs(L0), np.abs(numpy_svd(W)[0][:, list(i)]), atol=1e-10)


def test_magnitude_is_doras():
    """W' = g (W + s P Q) / ||W + s P Q||_row in float64, and its quotient is 1 to the last bit at the start."""
    W = weight((24, 16))
    made = METHODS["milora"].factors(full(W), Choice(R, SCALE))
    noise = [
        torch.randn(*s, dtype=torch.float64, generator=torch.Generator().manual_seed(9)) for s in ((24, R), (R, 16))
    ]
    g0, dg = row_norms(W), torch.rand(24, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    bracket = Bracket(SCALE, made.L0, made.R0, noise[0], noise[1])
    c = magnitude_quotient(W, g0, dg, bracket)
    V = W.numpy() + bracket.dense().numpy()
    wanted = (g0 + dg).numpy() / np.linalg.norm(V, axis=1)
    assert np.allclose(c.numpy(), wanted, rtol=1e-12)
    for dtype in (torch.float32, torch.bfloat16):
        low = W.to(dtype)
        zero = Bracket(SCALE, made.L0.float(), made.R0.float(), torch.zeros(24, R), torch.zeros(R, 16))
        for last_bits in (0, 1e-7, -1e-7):  # the norms of another machine
            g = row_norms(low) * (1 + last_bits)
            assert bool((magnitude_quotient(low, g, torch.zeros(24), zero) == 1).all())
    other = W + 0.1 * weight((16, 24)).T  # a base that it was not made on
    wanted = (g0 + dg).numpy() / np.linalg.norm(other.numpy() + bracket.dense().numpy(), axis=1)
    assert np.allclose(magnitude_quotient(other, g0, dg, bracket).numpy(), wanted, rtol=1e-12)
    W[3] = 0
    assert float(magnitude_quotient(W, row_norms(W), dg, bracket)[3]) == 1


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("lora_xs", 49),
        ("svf", 16),
        ("svft", 16),
        ("milora", 7 * 40),
        ("pissa", 7 * 40),
        ("random_components", 7 * 40),
        ("mica", 7 * 16),
    ],
)
def test_counts_are_the_papers_formulas(name, count):
    assert METHODS[name].count(24, 16, Choice(7, 1.0)) == count


@pytest.mark.parametrize("name", ["milora", "random_components", "mica"])
def test_zero_singular_values_still_get_a_gradient(name):
    """With r chosen values of exactly zero, R_i moves: its gradient s L_i^T G is not zero."""
    W = weight((20, 12)).float()
    W[:, 6:] = 0  # rank 6 of 12
    choice = Choice(12, 1.0, generator=torch.Generator().manual_seed(0))
    factors = METHODS[name].factors(full(W), choice)
    G = torch.randn(20, 12, generator=torch.Generator().manual_seed(1))
    gradient = (factors.L0.T @ G).norm(dim=1)  # (r,) of R at the start
    assert bool((gradient > 1e-2).all())
    if name != "mica":
        assert factors.dead == 6
        assert torch.allclose(factors.L0 @ factors.R0, W, atol=1e-5)


def test_an_unknown_method_names_the_nearest():
    with pytest.raises(MiloraError, match="did you mean 'milora'"):
        get_method("miolra")

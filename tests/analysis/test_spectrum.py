"""A spectrum's numbers against numpy in float64, the types of modules, the picture."""

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from milora.analysis.spectrum import layer_of, measures, module_types, spectrum
from milora.decompositions import Part, Store, weight_digest
from milora.errors import MiloraError
from milora.linalg.values import singular_values
from milora.models.weights import linear_weights


def random(m: int, n: int) -> torch.Tensor:
    return torch.randn(m, n, generator=torch.Generator().manual_seed(11))


MATRICES = {
    "wide": random(12, 30),
    "tall": random(30, 12),
    "odd": random(9, 9),
    "rank_deficient": random(16, 3) @ random(3, 10),
    "identity": torch.eye(8),
    "one_direction": random(10, 1) @ random(1, 7),
    "outlier": torch.diag(torch.tensor([1000.0, 1.0, 1.0, 0.5, 0.01])),
    "huge": random(8, 8).double() * 1e200,
}


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("rank", [1, 3])
def test_measures_equal_numpy_in_float64(name: str, rank: int):
    W = MATRICES[name]
    found = measures(singular_values(W), tuple(W.shape), rank, (0.1, 1.1))
    s = np.linalg.svd(W.double().numpy(), compute_uv=False)
    threshold = np.finfo(np.float32).eps * math.sqrt(max(W.shape)) * s[0]
    relative = s / s[0]
    p = relative[relative > 1e-14] / relative.sum()
    assert found["sigma_max"] == pytest.approx(s[0], rel=1e-10)
    assert found["sigma_median"] == pytest.approx(np.median(s), rel=1e-6, abs=1e-12 * s[0])
    assert found["sigma_min"] == pytest.approx(s[-1], rel=1e-6, abs=1e-12 * s[0])
    if s[-1] > threshold:
        assert found["condition"] == pytest.approx(np.linalg.cond(W.double().numpy()), rel=1e-5)
    assert found["effective_rank"] == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-6)
    norm = np.linalg.norm(W.double().numpy() / s[0])
    assert found["stable_rank"] == pytest.approx(norm**2, rel=1e-9)
    assert found["energy_bottom"] == pytest.approx((relative[-rank:] ** 2).sum() / norm**2, rel=1e-6, abs=1e-20)
    assert found["energy_top"] == pytest.approx((relative[:rank] ** 2).sum() / norm**2, rel=1e-6)
    assert found["in_interval"] == np.mean((s >= 0.1) & (s <= 1.1))
    assert found["rank_deficiency"] == len(s) - np.linalg.matrix_rank(W.double().numpy(), tol=threshold)


def test_ranks_are_what_they_are_known_to_be():
    eye = measures(singular_values(torch.eye(8)), (8, 8), 2, (0.1, 1.1))
    assert eye["effective_rank"] == pytest.approx(8) and eye["stable_rank"] == pytest.approx(8)
    assert (eye["condition"], eye["in_interval"], eye["rank_deficiency"]) == (1.0, 1.0, 0)
    assert eye["energy_top"] == eye["energy_bottom"] == pytest.approx(0.25)
    one = measures(singular_values(MATRICES["one_direction"]), (10, 7), 2, (0.1, 1.1))
    assert one["effective_rank"] == pytest.approx(1, abs=1e-5) and one["rank_deficiency"] == 6


def test_a_zero_matrix_has_no_condition_and_no_shares():
    found = measures(singular_values(torch.zeros(6, 4)), (6, 4), 2, (0.1, 1.1))
    assert found["condition"] is found["energy_bottom"] is found["energy_top"] is None
    assert (found["sigma_max"], found["effective_rank"], found["stable_rank"]) == (0.0, 0.0, 0.0)
    assert found["rank_deficiency"] == 4
    json.dumps(found, allow_nan=False)


def test_types_are_as_short_as_is_clear():
    llama = ["model.layers.0.self_attn.q_proj", "model.layers.10.mlp.up_proj"]
    assert list(module_types(llama).values()) == ["q_proj", "up_proj"]
    gpt2 = ["h.0.attn.c_attn", "h.0.attn.c_proj", "h.0.mlp.c_proj", "h.1.mlp.c_proj"]
    assert list(module_types(gpt2).values()) == ["c_attn", "attn.c_proj", "mlp.c_proj", "mlp.c_proj"]
    experts = ["layers.3.mlp.experts.0.up_proj", "layers.3.mlp.experts.11.up_proj", "layers.2.mlp.up_proj"]
    assert list(module_types(experts).values()) == ["mlp.experts.up_proj", "mlp.experts.up_proj", "mlp.up_proj"]
    assert [layer_of(name) for name in (*llama, "lm_head")] == [0, 10, None]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_a_model_is_measured_from_its_files(tiny_llama: Path, store: Store):
    weights = linear_weights(tiny_llama).weights
    found = spectrum(weights, store, rank=4, interval=(0.0, 1.0))
    tensors = load_file(tiny_llama / "model.safetensors")
    assert len(found.layers) == 14
    for layer in found.layers:
        s = np.linalg.svd(tensors[f"{layer.name}.weight"].double().numpy(), compute_uv=False)
        assert layer.sigma_min == pytest.approx(s[-1], rel=2e-6) and layer.sigma_max == pytest.approx(s[0], rel=1e-6)
    types = found.by_type()
    assert list(types) == ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    pair = [layer.sigma_max for layer in found.layers if layer.module_type == "k_proj"]
    over = {"median": pytest.approx(np.mean(pair)), "min": min(pair), "max": max(pair)}
    assert types["k_proj"]["sigma_max"] == over and types["k_proj"]["matrices"] == 2
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["deficient"] == []
    assert all(store.holds(weight_digest(w.load()).key, Part.values(), torch.float32) for w in weights)
    without = spectrum(weights, None, rank=4, interval=(0.0, 1.0))
    assert without.layers[0].sigma_min == pytest.approx(found.layers[0].sigma_min, rel=1e-6)


def test_deficient_layers_are_named(tiny_llama: Path, tmp_path: Path, store: Store):
    name = "model.layers.1.mlp.down_proj"
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_bytes((tiny_llama / "config.json").read_bytes())
    tensors = load_file(tiny_llama / "model.safetensors")
    tensors[f"{name}.weight"][:5] = 0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    found = spectrum(linear_weights(folder).weights, store, rank=4)
    assert found.as_dict()["deficient"] == [name]
    assert found.by_type()["down_proj"]["deficient"] == 1
    assert found.by_type()["down_proj"]["rank_deficiency"] == {"median": 2.5, "min": 0, "max": 5}
    tensors[f"{name}.weight"][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MiloraError, match=f"{name}: .*NaN or Inf"):
        spectrum(linear_weights(folder).weights, store, rank=4)
    with pytest.raises(MiloraError, match=f"{name}: .*NaN or Inf"):
        spectrum(linear_weights(folder).weights, None, rank=4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 33}, r"got 33, over the smaller side of 4 of 14 matrices, the first model.layers.0.self_attn.k_proj"),
        ({"rank": 0}, "rank: got 0"),
        ({"interval": (1.1, 0.1)}, "interval: got 1.1 to 0.1"),
        ({"interval": (-1.0, 0.1)}, "interval: got -1 to 0.1"),
        ({"interval": (0.1, float("nan"))}, "interval"),
        ({"procs": 0}, "procs: got 0"),
    ],
)
def test_a_wrong_call_is_one_line(tiny_llama: Path, store: Store, settings, message: str):
    with pytest.raises(MiloraError, match=message):
        spectrum(linear_weights(tiny_llama).weights, store, **{"rank": 4, **settings})
    with pytest.raises(MiloraError, match="procs: got 2, allowed 1 where the store is switched off"):
        spectrum(linear_weights(tiny_llama).weights, None, rank=4, procs=2)


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs the extra `report`")
def test_the_picture_is_drawn(tiny_llama: Path, tmp_path: Path, store: Store):
    from milora.analysis.spectrum_picture import draw

    found = spectrum(linear_weights(tiny_llama).weights, store, rank=4)
    draw(found, tmp_path / "s.png", "tiny")
    head = (tmp_path / "s.png").read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = int.from_bytes(head[16:20]), int.from_bytes(head[20:24])
    assert width > 1000 and height > 500
    draw(found, tmp_path / "s.svg", "tiny")
    text = (tmp_path / "s.svg").read_text(encoding="utf-8")
    # Seven panels with a curve for each of two layers, on logarithmic axes.
    assert text.startswith("<?xml") and text.count('id="axes_') == 8 + 1
    zero = spectrum(linear_weights(tiny_llama, ["q_proj"]).weights, store, rank=4)
    zero.values[0].zero_()
    draw(zero, tmp_path / "zero.png")
    assert [p.name for p in sorted(tmp_path.glob("*.*g"))] == ["s.png", "s.svg", "zero.png"]


def test_a_picture_that_cannot_be_drawn_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from milora.analysis import spectrum_picture

    with pytest.raises(MiloraError, match=r"output: got 's.jpg', allowed names that end in .png, .svg, .pdf"):
        spectrum_picture.check_picture(tmp_path / "s.jpg")
    monkeypatch.setattr(spectrum_picture, "find_spec", lambda name: None)
    with pytest.raises(MiloraError, match=r"matplotlib is not installed; pip install 'milora\[report\]'"):
        spectrum_picture.check_picture(tmp_path / "s.png")

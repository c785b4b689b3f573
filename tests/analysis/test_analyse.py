"""The record of a whole model: means, order, store, one matrix at a time; the orders that the methods' starts make."""

import json

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from analysis.changed_weights import factors, random
from milora.adapters import SpectralConfig, model_changes
from milora.adapters.delta import Delta
from milora.analysis import analyse
from milora.decompositions import Part, Store, using, weight_digest
from milora.errors import MiloraError
from models.tracked import tracked

NAMES = [f"model.layers.{i}.{name}" for i in (0, 2, 10) for name in ("self_attn.q_proj", "mlp.up_proj")]


def changes(names=NAMES):
    for i, name in enumerate(names):
        yield name, random(24, 16, i), factors(24, 16, (3,), 100 + i, 0.1 * (i + 1))


def test_the_summary_is_made_of_means():
    record = analyse(changes(), r=3, seed=5)
    assert (record["r"], record["seed"], record["against"]) == (3, 5, "base")
    assert record["intruder_dimensions"] == {"k": 10, "epsilon": 0.5}
    modules, summary = record["modules"], record["summary"]
    assert [m["module"] for m in modules] == NAMES and modules[1]["type"] == "up_proj" and modules[5]["layer"] == 10
    assert list(summary["by_type"]) == ["q_proj", "up_proj"] and list(summary["by_layer"]) == ["0", "2", "10"]
    groups = {
        ("by_type", "q_proj"): modules[::2],
        ("by_type", "up_proj"): modules[1::2],
        ("by_layer", "10"): modules[4:],
    }
    for (kind, name), members in [*groups.items(), (("all", ""), modules)]:
        means = summary if kind == "all" else summary[kind][name]
        assert means["matrices"] == len(members)
        for key in ("norm_dW", "relative", "intruders"):
            assert means[key] == pytest.approx(np.mean([m[key] for m in members]))
        wanted = np.mean([m["projection"]["dW"]["amplification"] for m in members])
        assert means["amplification"] == pytest.approx(wanted)
        for side in ("left", "right"):
            for part in ("top", "bottom", "random"):
                wanted = np.mean([m["phi"][side][part] for m in members])
                assert means["phi"][side][part] == pytest.approx(wanted)
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_the_order_of_the_modules_does_not_matter():
    before = {m["module"]: m for m in analyse(changes(), r=3)["modules"]}
    after = analyse(sorted(changes(), reverse=True), r=3)["modules"]
    assert [m["module"] for m in after] == sorted(NAMES, reverse=True)
    assert all(before[m["module"]] == m for m in after)


def test_what_is_absent_does_not_count_in_a_mean():
    zero = (NAMES[0], random(24, 16), torch.zeros(24, 16))
    record = analyse([zero, *changes(NAMES[1:])], r=3)
    assert record["summary"]["by_type"]["q_proj"]["amplification"] == pytest.approx(
        np.mean([m["projection"]["dW"]["amplification"] for m in record["modules"][2::2]])
    )
    nothing = analyse([zero], r=3)["summary"]
    assert nothing["amplification"] is None and nothing["phi"]["left"]["top"] is None and nothing["norm_dW"] == 0.0
    json.dumps(nothing, allow_nan=False)


class Watched:
    """Changes that know, whenever the next one is asked for, how many tensors of the last ones are still alive."""

    def __init__(self, dense: bool) -> None:
        self.dense, self.alive, self.watched = dense, [], []

    def __len__(self) -> int:
        return len(NAMES)

    def __iter__(self):
        for name in NAMES:
            self.alive.append(sum(ref() is not None for ref in self.watched))
            yield self.made(name)

    def made(self, name: str):
        W, first = tracked(random(24, 16, 1))
        dW = factors(24, 16, (3,), 2)
        P, second = tracked(dW.dense() if self.dense else dW.P)
        self.watched += [first, second]
        return name, W, P if self.dense else Delta(((P, dW.Q),), 1.0)


@pytest.mark.parametrize("dense", [False, True])
def test_one_matrix_at_a_time(dense: bool):
    watched, told = Watched(dense), []
    analyse(watched, r=3, progress=lambda done, total: told.append((done, total)))
    assert len(watched.watched) == 2 * len(NAMES)
    assert watched.alive == [0] * len(NAMES)
    assert told == [(i + 1, len(NAMES)) for i in range(len(NAMES))]


def test_parts_of_the_weights_are_computed_once_for_all_runs(tmp_path, monkeypatch: pytest.MonkeyPatch):
    with using(Store(tmp_path / "store")):
        first = analyse(changes(), r=3)
        store = Store(tmp_path / "store")
        for _, W, _ in changes():
            for part in (Part.top(3), Part.bottom(3)):
                assert store.holds(weight_digest(W).key, part, torch.float32)
        monkeypatch.setattr(Part, "compute", lambda *a, **k: pytest.fail("a decomposition was run"))
        assert analyse(changes(), r=3) == first
        assert analyse(changes(), r=3, seed=0)["summary"] == first["summary"]
    monkeypatch.undo()
    with using(None):
        assert analyse(changes(), r=3)["summary"]["phi"]["left"] == pytest.approx(first["summary"]["phi"]["left"])


def test_a_rank_above_a_side_is_that_side():
    record = analyse([("q", random(24, 4), factors(24, 4, (4,)))], r=50)
    phi = record["modules"][0]["phi"]
    # All right singular vectors are among the top, the bottom and the random ones.
    assert set(phi["right"]) == {"top", "bottom", "random"} and record["r"] == 50
    assert all(value == pytest.approx(1, abs=1e-5) for value in phi["right"].values())


@pytest.mark.parametrize(
    ("given", "settings", "said"),
    [
        ([], {}, "got no changed weight"),
        ([("q", random(4, 3), random(4, 3))], {"r": 0}, "r: got 0, allowed 1 or more"),
        ([("q", random(4, 3), random(3, 4))], {}, r"q: W is \(4, 3\), its change \(3, 4\)"),
        ([("q", random(4, 3) * float("inf"), random(4, 3))], {}, "q: weight: got NaN or Inf"),
    ],
)
def test_a_wrong_call_is_one_line(given, settings, said: str):
    with pytest.raises(MiloraError, match=said):
        analyse(given, **settings)


TARGETS = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
CONFIGS = {
    "lora": LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS),
    "milora": SpectralConfig(method="milora", r=8, lora_alpha=8, target_modules=TARGETS),
    "pissa": SpectralConfig(method="pissa", r=8, lora_alpha=8, target_modules=TARGETS),
}


def trained(folder, method: str, seed: int):
    """A random tiny Llama that has learned 60 batches of sequences in which each token tells the next."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = get_peft_model(model, CONFIGS[method])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-4)
    draw = torch.Generator().manual_seed(seed)
    following = torch.randint(0, 259, (259,), generator=draw)
    for _ in range(60):
        tokens = [torch.randint(0, 259, (4, 1), generator=draw)]
        while len(tokens) < 24:
            tokens.append(following[tokens[-1]])
        ids = torch.cat(tokens, dim=1)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.mark.parametrize("seed", [0, 1])
def test_implementation_check_of_the_orders_on_a_random_llama(tiny_llama, seed: int):
    """Consequences of the starts alone: weights that have learned nothing show them too, so it is no paper check."""
    found = {method: analyse(model_changes(trained(tiny_llama, method, seed)))["summary"] for method in CONFIGS}
    for method, inside, outside in (("milora", "bottom", "top"), ("pissa", "top", "bottom")):
        for side in ("left", "right"):
            phi = found[method]["phi"][side]
            assert phi[inside] >= 0.4 and phi[outside] <= 0.1, (method, side, phi)
    shapes = {"q_proj": (64, 64), "k_proj": (32, 64), "v_proj": (32, 64), "up_proj": (112, 64), "down_proj": (64, 112)}
    for side, at in (("left", 0), ("right", 1)):
        chance = np.mean([8 / shape[at] for shape in shapes.values()])
        for part in ("top", "bottom", "random"):
            assert 0.5 * chance <= found["lora"]["phi"][side][part] <= 1.5 * chance
    amplified = {method: summary["amplification"] for method, summary in found.items()}
    assert amplified["lora"] >= 2 * amplified["milora"] and amplified["milora"] >= 1.3 * amplified["pissa"]

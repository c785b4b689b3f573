"""Adapters added up: against the sum of their changes, for every method; and what is not linear refused."""

import copy
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from adapters.steps import adapt, logits, train_steps
from milora.adapters import compose, load_adapter, load_mixture
from milora.adapters.delta import AdapterFile, deltas
from milora.errors import MiloraError
from milora.methods import METHODS

WEIGHTS = [0.25, -1.5]
EXACT = {"mica", "lora_xs", "svf", "svft"}


def experts(base, ids, folder, *settings):
    """Adapters trained on different tokens."""
    for i, given in enumerate(settings):
        model = adapt(base(), lora_dropout=0.0, **given)
        train_steps(model, (ids + 7 * i) % 250 + 3)
        model.save_pretrained(folder / str(i))
    return [folder / str(i) for i in range(len(settings))]


def wanted(folders, weights, base):
    """sum_k a_k dW_k by module."""
    total: dict[str, torch.Tensor] = {}
    for folder, a in zip(folders, weights, strict=True):
        file = AdapterFile(folder, base=base)
        for module in file.modules:
            total[module] = total.get(module, 0) + a * file.delta(module).dense()
    return total


def check(folders, output, tiny_llama, base, ids):
    total = wanted(folders, WEIGHTS, tiny_llama)
    file = AdapterFile(output, base=tiny_llama)
    assert file.modules == sorted(total)
    for module in file.modules:
        found = file.delta(module).dense()
        assert torch.allclose(found, total[module], atol=2e-6 * float(total[module].abs().max()) + 1e-7), module
    assert float((logits(load_adapter(base(), output), ids) - logits(base(), ids)).abs().max()) > 1e-4


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_composed_change_is_the_sum_of_the_changes(base, ids, tmp_path, tiny_llama, method):
    folders = experts(base, ids, tmp_path, {"method": method}, {"method": method})
    done = compose(folders, WEIGHTS, tmp_path / "both", model_name_or_path=tiny_llama)
    assert (done.how, done.method) == (("sum", method) if method in EXACT else ("concatenation", "lora"))
    assert done.rank == (None if method in EXACT else 32)
    check(folders, tmp_path / "both", tiny_llama, base, ids)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"method": "svft"}, {"method": "svft", "pattern": "banded", "d": 2}),
        ({"method": "svft", "pattern": "random", "entries": 40}, {"method": "svft", "pattern": "banded", "d": 1}),
        ({"method": "svft", "pattern": "random", "entries": 40, "components_seed": 1},
         {"method": "svft", "pattern": "random", "entries": 30, "components_seed": 2}),
        ({"method": "svft", "save_bases": False}, {"method": "svft", "pattern": "banded", "d": 1, "save_bases": False}),
        ({"method": "svf"}, {"method": "svf", "as_published": True}),
        ({"method": "svf"}, {"method": "svf", "components_seed": 7}),  # of runs with other seeds: nothing was drawn
        ({"method": "svft", "as_published": True}, {"method": "svft"}),
        ({"method": "lora_xs", "lora_alpha": 16}, {"method": "lora_xs"}),
        ({"method": "mica", "lora_alpha": 4}, {"method": "mica", "use_rslora": True}),
    ],
)  # fmt: skip
def test_patterns_scales_and_published_forms_are_summed_exactly(base, ids, tmp_path, tiny_llama, one, other):
    folders = experts(base, ids, tmp_path, one, other)
    assert compose(folders, WEIGHTS, tmp_path / "both", model_name_or_path=tiny_llama).how == "sum"
    check(folders, tmp_path / "both", tiny_llama, base, ids)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"method": "mica"}, {"method": "mica", "components": "top"}),
        ({"method": "mica", "r": 4}, {"method": "mica"}),
        (
            {"method": "lora_xs", "components": "random", "save_bases": False},
            {"method": "lora_xs", "components": "random", "save_bases": False, "components_seed": 7},
        ),
        ({"method": "mica"}, {"method": "milora"}),
        ({"method": "lora_xs", "target_modules": ["q_proj"]}, {"method": "lora_xs", "target_modules": ["up_proj"]}),
    ],
)
def test_other_bases_are_put_side_by_side(base, ids, tmp_path, tiny_llama, one, other):
    folders = experts(base, ids, tmp_path, one, other)
    assert compose(folders, WEIGHTS, tmp_path / "both").how == "concatenation"
    check(folders, tmp_path / "both", tiny_llama, base, ids)


def test_svf_of_weights_that_add_up_to_one_is_the_mean_of_z(base, ids, tmp_path, tiny_llama):
    folders = experts(base, ids, tmp_path, {"method": "svf"}, {"method": "svf"})
    compose(folders, [0.3, 0.7], tmp_path / "both", model_name_or_path=tiny_llama)
    files = [AdapterFile(f, base=tiny_llama) for f in (*folders, tmp_path / "both")]
    for module in files[0].modules:
        z = [1 + file.parts(module, made=False)["C"] for file in files]
        assert torch.allclose(z[2], 0.3 * z[0] + 0.7 * z[1], atol=1e-6)
        assert float((z[0] - z[1]).abs().max()) > 1e-4


def test_a_lora_of_pefts_joins_in(base, ids, tmp_path):
    folders = experts(base, ids, tmp_path, {"method": "milora"})
    lora = get_peft_model(base(), LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"]))
    train_steps(lora, ids)
    lora.save_pretrained(tmp_path / "lora")
    compose([folders[0], tmp_path / "lora"], [1, 1], tmp_path / "both")
    total = wanted([folders[0], tmp_path / "lora"], [1, 1], None)
    assert all(torch.allclose(d.dense(), total[m], atol=1e-6) for m, d in deltas(tmp_path / "both"))
    PeftModel.from_pretrained(base(), tmp_path / "both")


@pytest.mark.parametrize("noted", [True, False])
def test_an_adapter_without_its_bases_is_added_up_only_on_the_same_ones(base, ids, tmp_path, tiny_llama, noted):
    unsaved, saved = experts(base, ids, tmp_path, {"method": "mica", "save_bases": False}, {"method": "mica"})
    if not noted:  # what its bases were made of, as before that was written down
        file = unsaved / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"base_dtype": None, "base_values": None}))
    same = compose([unsaved, saved], WEIGHTS, tmp_path / "same", model_name_or_path=tiny_llama)
    check([unsaved, saved], tmp_path / "same", tiny_llama, base, ids)
    # The same change by other factors, as an adapter has that was brought in from elsewhere.
    weights = load_file(saved / "adapter_model.safetensors")
    turned = {n: t.flip(1) if n.endswith("L0") else t.flip(0) if n.endswith("dR") else t for n, t in weights.items()}
    save_file({n: t.contiguous() for n, t in turned.items()}, saved / "adapter_model.safetensors")
    other = compose([unsaved, saved], WEIGHTS, tmp_path / "other", model_name_or_path=tiny_llama)
    assert (same.how, other.how) == ("sum", "concatenation")
    check([unsaved, saved], tmp_path / "other", tiny_llama, base, ids)


def test_what_is_not_linear_or_of_another_base_is_refused(base, ids, tmp_path):
    plain, magnitude, biased = experts(
        base, ids, tmp_path, {"method": "mica"}, {"method": "mica", "magnitude": True},
        {"method": "mica", "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    )  # fmt: skip
    other = tmp_path / "other"
    model = base()
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] += 1
    adapt(model, "mica").save_pretrained(other)
    output = tmp_path / "out"
    for folders, weights, message in [
        ([plain, magnitude], [1, 1], "has a magnitude, whose norm is not linear"),
        ([plain, biased], [1, 1], "lm_head.*allowed no trained biases or whole modules"),
        ([plain, other], [1, 1], "was made on another base than .*--force"),
        ([plain], [1], "adapters: got 1, allowed two or more"),
        ([plain, plain], [1], "weights: got .1., allowed 2 finite numbers"),
        ([plain, plain], [1, float("nan")], "allowed 2 finite numbers"),
    ]:
        with pytest.raises(MiloraError, match=message) as caught:
            compose(folders, weights, output)
        assert "\n" not in str(caught.value) and not output.exists()
    assert compose([plain, other], [1, 1], output, force=True).path == output
    with pytest.raises(MiloraError, match="exists, allowed a new one, or --overwrite"):
        compose([plain, plain], [1, 1], output)
    compose([plain, plain], [1, 1], output, overwrite=True)
    assert json.loads((output / "adapter_config.json").read_text())["method"] == "mica"


def test_bases_are_not_made_of_another_model(base, ids, tmp_path, tiny_llama):
    """An adapter that was saved without L0 and R0 names its base by its values, and meets no other."""
    (svf,) = experts(base, ids, tmp_path, {"method": "svf"})
    other = base()
    other.model.layers[0].mlp.up_proj.weight.data[0, 0] += 1
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(MiloraError, match=r"was made on a base with fingerprint .*, this base has "):
        AdapterFile(svf, base=tmp_path / "other").delta("model.layers.0.mlp.up_proj")
    AdapterFile(svf, base=tiny_llama).delta("model.layers.0.mlp.up_proj")


def test_a_mixture_may_be_forced_onto_another_base(base, ids, tmp_path):
    folders = experts(base, ids, tmp_path, {"method": "mica"}, {"method": "mica"})
    other = base()
    other.model.layers[0].mlp.up_proj.weight.data[0, 0] += 1
    with pytest.raises(MiloraError, match="--force"):
        load_mixture(copy.deepcopy(other), folders)
    model, _ = load_mixture(other, folders, force=True)
    assert set(model.peft_config) == {"default", "adapter_1"}


def test_a_mixture_in_the_model_is_the_composed_adapter(base, ids, tmp_path, tiny_llama):
    folders = experts(base, ids, tmp_path, {"method": "svf"}, {"method": "svf"})
    model, set_weights = load_mixture(base(), folders)
    for weights in (WEIGHTS, [0.5, 0.5]):
        set_weights(weights)
        compose(folders, weights, tmp_path / "both", model_name_or_path=tiny_llama, overwrite=True)
        assert torch.allclose(logits(model, ids), logits(load_adapter(base(), tmp_path / "both"), ids), atol=5e-6)
    assert not torch.allclose(logits(model, ids), logits(base(), ids), atol=1e-4)

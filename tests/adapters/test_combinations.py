"""What may be combined: magnitudes, rsLoRA's scale, components, patterns, bases that are shared, unsaved or dropped."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from adapters.steps import adapt, logits, sgd_steps, train_steps
from milora.adapters import SpectralConfig, SpectralLinear, load_adapter
from milora.adapters.delta import AdapterFile
from milora.decompositions import Part, Store, using
from milora.errors import MiloraError
from milora.methods import METHODS, Choice

Q = "base_model.model.model.layers.0.self_attn.q_proj"
CELLS = [
    *({"method": m, "magnitude": True} for m in sorted(METHODS)),
    *({"method": m, "components": c} for m in ("mica", "lora_xs") for c in ("top", "bottom", "middle", "random")),
    {"method": "lora_xs", "components": [0, 1, 2, 3, 5, 8, 13, 21], "use_rslora": True, "magnitude": True},
    {"method": "random_components", "components": [0, 1, 2, 3, 5, 8, 13, 21]},
    {"method": "svft", "pattern": "banded", "d": 2},
    {"method": "svft", "pattern": "random", "d": 2},
    {"method": "svft", "pattern": "random", "entries": 50, "save_bases": False},
    {"method": "svft", "pattern": "top_k", "d": 1, "target_modules": ["q_proj"]},
    {"method": "svft", "svd_rank": 10, "magnitude": True, "pattern": "banded", "d": 3},
    {"method": "svf", "svd_rank": 10, "save_bases": True},
    {"method": "milora", "use_rslora": True, "lora_alpha": 16, "save_bases": False},
    {"method": "mica", "save_bases": False},
    {"method": "lora_xs", "save_bases": False},
]


@pytest.mark.parametrize("cell", CELLS, ids=lambda c: "-".join(map(str, c.values())))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_cell_keeps_the_laws(base, ids, tmp_path, cell, dtype):
    model = base(dtype)
    before = logits(model, ids)
    adapted = adapt(model, **cell)
    for training in (False, True):
        assert torch.equal(logits(adapted.train(training), ids), before)
    train_steps(adapted, ids)
    trained = logits(adapted, ids)
    assert float((trained - before).abs().max()) > (1e-4 if dtype == torch.float32 else 2e-3)
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted, ids), before)
    adapted.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(base(dtype), tmp_path), ids), trained)
    rounding = 5e-6 if dtype == torch.float32 else 5e-2
    adapted.merge_adapter()
    assert torch.allclose(logits(adapted, ids), trained, atol=rounding, rtol=0)
    adapted.unmerge_adapter()
    assert torch.equal(logits(adapted, ids), trained)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_magnitude_is_one_more_number_an_output(base, method):
    adapted = adapt(base(), method, magnitude=True)
    layers = [m for m in adapted.modules() if isinstance(m, SpectralLinear)]
    count = sum(METHODS[method].count(m.out_features, m.in_features, Choice(8, 1.0)) + m.out_features for m in layers)
    assert sum(p.numel() for p in adapted.parameters() if p.requires_grad) == count


def test_a_magnitude_trains_as_pefts_dora_does(base, ids):
    """MiCA's factors in both, so that A starts at zero and B is frozen: the same steps of A and of the magnitude."""
    ours = adapt(base(), "mica", lora_alpha=8, magnitude=True, lora_dropout=0.0, target_modules=["q_proj", "down_proj"])
    config = LoraConfig(r=8, lora_alpha=8, use_dora=True, target_modules=["q_proj", "down_proj"])
    theirs = get_peft_model(base(), config)
    for name, module in theirs.named_modules():
        if hasattr(module, "lora_magnitude_vector"):
            module.lora_A["default"].weight.data.zero_()
            module.lora_B["default"].weight.data.copy_(ours.get_submodule(name).spectral_L0["default"].detach())
            module.lora_B["default"].weight.requires_grad_(False)
    found = []
    for model in (ours, theirs):
        sgd_steps(model, ids)
        found.append(logits(model, ids))
    change = float((found[1] - logits(base(), ids)).abs().max())
    assert change > 0.02
    assert float((found[0] - found[1]).abs().max()) < 0.005 * change
    assert float(ours.get_submodule(Q).spectral_dg["default"].detach().abs().max()) > 1e-4


@pytest.mark.parametrize("method", ["svf", "svft", "lora_xs"])
def test_as_published_starts_beside_the_base_and_travels(base, ids, tmp_path, method):
    adapted = adapt(base(), method, as_published=True)
    before, start = logits(base(), ids), logits(adapted, ids)
    assert not torch.equal(start, before)
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted, ids), before)
    train_steps(adapted, ids)
    trained = logits(adapted, ids)
    assert not torch.equal(trained, start)
    adapted.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(base(), tmp_path), ids), trained)
    assert torch.allclose(logits(adapted.merge_and_unload(), ids), trained, atol=5e-6, rtol=0)


def test_two_adapters_on_one_weight_share_their_bases(base):
    adapted = adapt(base(), "svft")
    size = sum(p.numel() for p in adapted.parameters())
    config = SpectralConfig(method="svft", pattern="banded", d=1, target_modules="all-linear")
    adapted.add_adapter("other", config)
    layer = adapted.get_submodule(Q)
    assert layer.spectral_L0["other"] is layer.spectral_L0["default"]
    grown = sum(p.numel() for p in adapted.parameters()) - size
    assert grown == sum(layer.spectral_C["other"].numel() for layer in adapted.modules()
                        if isinstance(layer, SpectralLinear))  # fmt: skip


def saved_names(folder):
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        return {name.rsplit("spectral_", 1)[-1] for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize(("save_bases", "names"), [(None, {"C"}), (False, {"C"}), (True, {"C", "L0", "R0"})])
def test_a_saved_svf_holds_z_alone_unless_asked(base, ids, tmp_path, monkeypatch, save_bases, names):
    with using(Store(tmp_path / "store")):
        adapted = adapt(base(), "svf", save_bases=save_bases)
        train_steps(adapted, ids)
        adapted.save_pretrained(tmp_path / "svf")
        assert saved_names(tmp_path / "svf") == names
        monkeypatch.setattr(Part, "compute", lambda *a, **k: pytest.fail("a decomposition was run"))
        for low in (False, True):
            loaded = PeftModel.from_pretrained(base(), tmp_path / "svf", low_cpu_mem_usage=low)
            assert torch.equal(logits(loaded, ids), logits(adapted, ids))


def test_a_scattered_core_keeps_its_positions(base, ids, tmp_path):
    adapted = adapt(base(), "svft", pattern="random", entries=30, components_seed=5)
    train_steps(adapted, ids)
    adapted.save_pretrained(tmp_path)
    assert saved_names(tmp_path) == {"C", "L0", "R0", "indices"}
    # A later version may draw otherwise: the file's positions count.
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"components_seed": 6}))
    assert torch.equal(logits(PeftModel.from_pretrained(base(), tmp_path), ids), logits(adapted, ids))


def test_unsaved_bases_without_their_core_do_not_pass_for_an_adapter(base, ids, tmp_path):
    adapted = adapt(base(), "svf")
    adapted.save_pretrained(tmp_path)
    model = get_peft_model(base(), SpectralConfig.from_pretrained(str(tmp_path)))
    with pytest.raises(MiloraError, match="weights were not loaded"):
        model(input_ids=ids)


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=260, n_positions=32, n_embd=32, n_layer=2, n_head=2)).eval()


@pytest.mark.parametrize("fresh", ["llama", "gpt2"])
def test_svf_without_the_base_weight(base, ids, tmp_path, fresh):
    make = base if fresh == "llama" else gpt2
    before = logits(make(), ids)
    twin = adapt(make(), "svf", lora_dropout=0.0)
    adapted = adapt(make(), "svf", lora_dropout=0.0, drop_base=True)
    layers = [m for m in adapted.modules() if isinstance(m, SpectralLinear)]
    assert layers and all(m.weight.numel() == 0 for m in layers)
    assert torch.allclose(logits(adapted, ids), before, atol=2e-5, rtol=0)
    for model in (twin, adapted):
        train_steps(model, ids)
    trained = logits(adapted, ids)
    assert torch.allclose(trained, logits(twin, ids), atol=2e-4, rtol=0)
    assert not torch.allclose(trained, before, atol=1e-3, rtol=0)
    with adapted.disable_adapter():
        assert torch.allclose(logits(adapted, ids), before, atol=2e-5, rtol=0)
    adapted.save_pretrained(tmp_path)
    for low in (False, True):
        loaded = PeftModel.from_pretrained(make(), tmp_path, low_cpu_mem_usage=low)
        assert torch.equal(logits(loaded, ids), trained)
        assert all(m.weight.numel() == 0 for m in loaded.modules() if isinstance(m, SpectralLinear))
    adapted.merge_adapter()
    assert torch.allclose(logits(adapted, ids), trained, atol=2e-5, rtol=0)
    adapted.unmerge_adapter()
    assert all(m.weight.numel() == 0 for m in layers)
    assert torch.equal(logits(adapted, ids), trained)
    adapted.add_adapter("other", SpectralConfig(method="mica", r=4, target_modules="all-linear"))
    adapted.delete_adapter("default")
    adapted.set_adapter("other")
    assert torch.allclose(logits(adapted, ids), before, atol=2e-5, rtol=0)
    assert torch.allclose(logits(adapted.merge_and_unload(), ids), before, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "milora", "components": "top"}, r"components: got 'top', allowed bottom .*method 'pissa' is that"),
        ({"method": "pissa", "components": "bottom"}, "method 'milora' is that"),
        ({"method": "svf", "components": "top"}, "allowed none: it takes all with method svf"),
        ({"method": "mica", "components": [3, 1]}, "components: got .3, 1., allowed rising whole numbers"),
        ({"method": "mica", "components": [1, 3]}, "components: got '2 indices', allowed r = 8"),
        ({"method": "mica", "components": [0, 1, 2, 3, 4, 5, 6, 99]}, "layers.*allowed .* 0 to "),
        ({"method": "milora", "pattern": "banded"}, "pattern: got 'banded' with method milora, which has no such"),
        ({"method": "svft", "pattern": "band"}, "pattern: got 'band', allowed plain, banded, random, top_k"),
        ({"method": "svft", "d": 2}, "d: got 2, allowed only with pattern banded"),
        ({"method": "svft", "pattern": "banded", "d": 64}, "d: got 64, allowed 0 to "),
        ({"method": "svft", "pattern": "banded", "entries": 5}, "entries: got 5, allowed a whole number"),
        ({"method": "svft", "pattern": "random", "entries": 10**9}, "entries: got 1000000000, allowed 1 to "),
        ({"method": "svft", "pattern": "top_k", "d": 1}, "allowed only for square ones"),
        ({"method": "svf", "svd_rank": 65}, "svd_rank: got 65 for .* allowed 1 to "),
        ({"method": "svf", "lora_alpha": 8}, "lora_alpha: got '8 with method svf', allowed none: its scale is 1"),
        ({"method": "svft", "drop_base": True}, "drop_base: got True, allowed only for svf"),
        ({"method": "svf", "drop_base": True, "magnitude": True}, "drop_base: got True"),
        ({"method": "milora", "as_published": True}, "as_published: got True with method milora"),
    ],
)
def test_what_does_not_go_together_is_one_line(base, ids, settings, message):
    model = base()
    before = logits(model, ids)
    with pytest.raises(MiloraError, match=message) as caught:
        adapt(model, **settings)
    assert "\n" not in str(caught.value)
    assert torch.equal(logits(model, ids), before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: i + 100, "indices: got .* allowed 0 to 63|indices: got .* allowed 0 to 31"),
        (lambda i: i - 100, "indices: got -"),
        (lambda i: i * 0, "positions twice, allowed each once"),
    ],
)
def test_damaged_positions_are_one_line(base, ids, tmp_path, change, message):
    adapt(base(), "svft", pattern="random", entries=30).save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    weights = load_file(file)
    name = next(n for n in weights if n.endswith("indices"))
    save_file(weights | {name: change(weights[name])}, file)
    module = name.removeprefix("base_model.model.").removesuffix(".spectral_indices")
    for read in (lambda: load_adapter(base(), tmp_path), lambda: AdapterFile(tmp_path).delta(module)):
        with pytest.raises(MiloraError, match=message) as caught:
            read()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["svf", "milora", "mica"])
def test_unsaved_bases_are_made_of_the_weights_in_the_dtype_that_trained(base, ids, tiny_llama, method, tmp_path):
    """A float32 checkpoint whose adapter was trained on it in bfloat16: other values, and so other bases."""
    trained = adapt(base(torch.bfloat16), method, save_bases=False)
    train_steps(trained, ids)
    trained.save_pretrained(tmp_path / "unsaved")
    whole = adapt(base(torch.bfloat16), method, save_bases=True)
    for name, module in whole.named_modules():
        if isinstance(module, SpectralLinear):
            for factor in ("dL", "dR", "C"):
                held = getattr(trained.get_submodule(name), f"spectral_{factor}")
                if "default" in held:
                    getattr(module, f"spectral_{factor}")["default"].data.copy_(held["default"])
    whole.save_pretrained(tmp_path / "saved")
    files = [AdapterFile(tmp_path / kind, base=tiny_llama) for kind in ("unsaved", "saved")]
    for module in files[0].modules:
        unsaved, saved = (file.delta(module).dense() for file in files)
        assert torch.linalg.norm(unsaved) > 0
        torch.testing.assert_close(unsaved, saved, rtol=1e-5, atol=1e-7)
    # On the float32 base the same change is made, and in another dtype's values it is refused.
    on_float32 = load_adapter(base(), tmp_path / "unsaved")
    torch.testing.assert_close(logits(on_float32, ids), logits(load_adapter(base(), tmp_path / "saved"), ids))
    other = adapt(base(), method, save_bases=False)
    other.save_pretrained(tmp_path / "float32")
    with pytest.raises(MiloraError, match="made of other weights in float32"):
        load_adapter(base(torch.bfloat16), tmp_path / "float32")

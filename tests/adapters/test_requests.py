"""What may be asked of an adapter, and the one line that answers what may not."""

import json

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from adapters.steps import adapt, logits, train_steps
from milora.adapters import (
    SpectralConfig,
    SpectralLinear,
    attach,
    export_lora,
    load_adapter,
    merge_adapter,
    peft_config,
)
from milora.errors import MiloraError


def layer_names(model):
    return [n for n, m in model.named_modules() if isinstance(m, SpectralLinear)]


def test_ranks_and_alphas_by_pattern(base, ids, tmp_path):
    model = adapt(base(), "milora", rank_pattern={"q_proj": 3, "layers.1.mlp.up_proj": 5}, alpha_pattern={"q_proj": 6})
    ranks = {n.removeprefix("base_model.model."): model.get_submodule(n).r["default"] for n in layer_names(model)}
    assert ranks["model.layers.0.self_attn.q_proj"] == 3
    assert ranks["model.layers.1.mlp.up_proj"] == 5
    assert ranks["model.layers.0.mlp.up_proj"] == 8
    assert model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj").scaling["default"] == 2.0
    train_steps(model, ids)
    model.save_pretrained(tmp_path / "own")
    export_lora(tmp_path / "own", "some/base", tmp_path / "lora")
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["rank_pattern"], config["alpha_pattern"]) == (16, 16, {}, {})
    assert config["base_model_name_or_path"] == "some/base"
    loaded = PeftModel.from_pretrained(base(), tmp_path / "lora")
    assert torch.allclose(logits(loaded, ids), logits(model, ids), atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "milra"}, "did you mean 'milora'"),
        ({"r": 0}, "r: got 0"),
        ({"r": 200}, "got 200 for model.layers.0.self_attn.q_proj .64 x 64., allowed 1 to 64"),
        ({"r": 4.0}, "r: got 4.0, allowed a whole number"),
        ({"lora_alpha": 0}, "lora_alpha: got 0, allowed a number above 0"),
        ({"lora_alpha": -8}, "lora_alpha: got -8"),
        ({"alpha_pattern": {"q_proj": 0}}, "alpha_pattern.'q_proj'.: got 0"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern.'q_proj'.: got 0"),
        ({"lora_dropout": 1.0}, "lora_dropout: got 1.0"),
        ({"target_modules": ["qproj"]}, "matches nothing, allowed e.g. .*q_proj"),
        ({"rank_pattern": {"nosuch": 4}}, "rank_pattern: 'nosuch' matches none"),
        ({"alpha_pattern": {"nosuch": 4}}, "alpha_pattern: 'nosuch' matches none"),
        ({"bias": "some"}, "bias: got 'some'"),
        ({"components": "middle"}, "components: got 'middle', allowed bottom with method milora"),
        ({"target_modules": ["mlp"]}, "mlp is a LlamaMLP, allowed Linear, Conv1D or Embedding"),
    ],
)
def test_a_wrong_request_is_one_line_and_leaves_the_model_alone(base, ids, settings, message):
    model = base()
    before = logits(model, ids)
    with pytest.raises(MiloraError, match=message) as caught:
        arguments = {"method": "milora", "r": 8, "target_modules": "all-linear", **settings}
        get_peft_model(model, SpectralConfig(**arguments))
    assert "\n" not in str(caught.value)
    assert layer_names(model) == []
    assert torch.equal(logits(model, ids), before)


def test_nan_in_a_weight_names_the_layer(base):
    model = base()
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(MiloraError, match=r"layers\.1\.mlp\.up_proj.*NaN or Inf"):
        adapt(model, "milora")


def test_zero_singular_values_are_named_and_still_train(base, ids):
    model = base()
    model.model.layers[0].self_attn.q_proj.weight.data[:, 10:] = 0  # rank 10 of 64
    with pytest.warns(UserWarning, match=r"8 chosen singular values in 1 layers.*layers\.0\.self_attn\.q_proj \(8\)"):
        adapted = adapt(model, "milora", lora_dropout=0.0)
    adapted(input_ids=ids, labels=ids).loss.backward()
    layer = adapted.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    assert bool((layer.spectral_dR["default"].grad.norm(dim=1) > 0).all())


def test_where_to_adapt_is_pefts(base):
    model = adapt(base(), "milora", target_modules=["q_proj", "v_proj"], layers_to_transform=[1])
    assert [n.removeprefix("base_model.model.model.layers.") for n in layer_names(model)] == [
        "1.self_attn.q_proj",
        "1.self_attn.v_proj",
    ]
    model = adapt(base(), "milora", exclude_modules=["down_proj", "lm_head"])
    assert len(layer_names(model)) == 12
    assert not any("down_proj" in n for n in layer_names(model))


@pytest.mark.parametrize("bias", ["all", "spectral_only"])
def test_biases_train_and_travel(ids, tmp_path, bias):
    def fresh():
        torch.manual_seed(0)
        return GPT2LMHeadModel(GPT2Config(vocab_size=260, n_positions=32, n_embd=32, n_layer=2, n_head=2)).eval()

    model = adapt(fresh(), "milora", target_modules=["c_attn", "c_fc"], bias=bias, lora_dropout=0.0)
    before = logits(fresh(), ids)
    assert torch.equal(logits(model, ids), before)
    trained_biases = [n for n, p in model.named_parameters() if p.requires_grad and n.endswith("bias")]
    every = [n for n, _ in fresh().named_parameters() if n.endswith("bias")]
    assert len(trained_biases) == (4 if bias == "spectral_only" else len(every))
    train_steps(model, ids, lr=0.1)
    trained = logits(model, ids)
    for _ in range(2):
        with model.disable_adapter():
            assert torch.equal(logits(model, ids), before)
        assert torch.equal(logits(model, ids), trained)
    model.save_pretrained(tmp_path / "own")
    loaded = PeftModel.from_pretrained(fresh(), tmp_path / "own")
    assert torch.equal(logits(loaded, ids), trained)
    with loaded.disable_adapter():
        assert torch.equal(logits(loaded, ids), before)
    export_lora(tmp_path / "own", None, tmp_path / "lora")
    exported = PeftModel.from_pretrained(fresh(), tmp_path / "lora")
    assert torch.allclose(logits(exported, ids), trained, atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", ["milora", "mica"])
def test_conv1d_is_adapted_like_a_linear_layer(ids, method):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=260, n_positions=32, n_embd=32, n_layer=2, n_head=2)).eval()
    before = logits(model, ids)
    adapted = adapt(model, method, target_modules="all-linear")
    assert len(layer_names(adapted)) == 8
    assert torch.equal(logits(adapted, ids), before)
    layer = adapted.get_submodule("base_model.model.transformer.h.0.attn.c_attn")
    W = layer.base_layer.weight.detach().T  # (out, in)
    U = torch.linalg.svd(W, full_matrices=False)[0][:, -8:]
    L0 = layer.spectral_L0["default"]
    assert torch.allclose(U @ (U.T @ L0), L0, atol=1e-5)
    train_steps(adapted, ids)
    trained = logits(adapted, ids)
    merged = adapted.merge_and_unload()
    assert torch.allclose(logits(merged, ids), trained, atol=1e-5, rtol=0)
    assert not torch.allclose(trained, before, atol=1e-3, rtol=0)


def test_modules_to_save_travel_through_save_and_export(base, ids, tmp_path):
    model = adapt(base(), "milora", target_modules=["q_proj"], modules_to_save=["lm_head"])
    train_steps(model, ids)
    model.save_pretrained(tmp_path / "own")
    assert torch.equal(logits(PeftModel.from_pretrained(base(), tmp_path / "own"), ids), logits(model, ids))
    export_lora(tmp_path / "own", None, tmp_path / "lora")
    exported = PeftModel.from_pretrained(base(), tmp_path / "lora")
    assert torch.allclose(logits(exported, ids), logits(model, ids), atol=2e-6, rtol=0)


@pytest.mark.parametrize("method", ["milora", "lora"])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_modules": ["q_proj", "nosuch"]}, "target_modules: 'nosuch' matches no module"),
        ({"modules_to_save": ["nosuch"]}, "modules_to_save: 'nosuch' matches no module"),
        ({"exclude_modules": ["nosuch"]}, "exclude_modules: 'nosuch' matches no module"),
        ({"rank_pattern": {"nosuch": 3}}, "rank_pattern: 'nosuch' matches no"),
    ],
)
def test_a_recipe_may_not_name_what_is_not_there(base, method, settings, message):
    config = peft_config({"method": method, "lora_r": 4, **settings})
    with pytest.raises(MiloraError, match=message):
        attach(base(), config)
    good = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"], "rank_pattern": {"q_proj": 3}}
    assert attach(base(), peft_config({"method": method, "lora_r": 4, **good})).peft_config["default"].r == 4


def test_an_export_names_a_base_that_fits(saved, tiny_llama, tmp_path):
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=260, n_embd=32, n_layer=1, n_head=2)).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(MiloraError, match=r"has no layer model\.layers\.0"):
        export_lora(saved[0], str(tmp_path / "gpt2"), tmp_path / "out", check_base=True)
    with pytest.raises(MiloraError, match="does not exist"):
        export_lora(saved[0], str(tmp_path / "nosuch"), tmp_path / "out", check_base=True)
    assert not (tmp_path / "out").exists()
    export_lora(saved[0], str(tiny_llama), tmp_path / "out", check_base=True)


def test_names_per_sample_are_refused_not_ignored(base, ids):
    model = adapt(base(), "milora")
    with pytest.raises(MiloraError, match="adapter_names"):
        model(input_ids=ids, adapter_names=["default", "__base__"])


@pytest.fixture
def saved(base, ids, tmp_path):
    model = adapt(base(), "milora")
    train_steps(model, ids)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", logits(model, ids)


def test_another_base_is_refused_with_both_fingerprints(base, ids, saved):
    folder, trained = saved
    made_on = json.loads((folder / "adapter_config.json").read_text())["base_fingerprint"]
    other = base()
    other.model.layers[0].mlp.up_proj.weight.data[0, 0] += 1
    for load in (load_adapter, PeftModel.from_pretrained):
        with pytest.raises(MiloraError, match=f"{made_on}, this base has [0-9a-f]{{64}}; --force"):
            load(other, folder)
    assert layer_names(other) == []
    forced = load_adapter(other, folder, force=True)
    assert not torch.equal(logits(forced, ids), trained)
    assert torch.equal(logits(load_adapter(base(torch.bfloat16), folder), ids).isfinite().all(), torch.tensor(True))


def test_a_configuration_without_its_weights_does_not_pass_for_an_adapter(base, ids, saved):
    config = SpectralConfig.from_pretrained(str(saved[0]))
    model = get_peft_model(base(), config)
    with pytest.raises(MiloraError, match="weights were not loaded"):
        model(input_ids=ids)


def test_auto_model_loads_it_from_the_name_of_its_base(tiny_llama, ids, tmp_path):
    model = adapt(AutoModelForCausalLM.from_pretrained(tiny_llama), "milora")
    train_steps(model, ids)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoPeftModelForCausalLM.from_pretrained(tmp_path), ids), logits(model, ids))


def broken(folder, change):
    weights = load_file(folder / "adapter_model.safetensors")
    name = next(n for n in weights if n.endswith("spectral_dR"))
    change(weights, name)
    save_file(weights, folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w, n: w.pop(n), "lacks .*spectral_dR"),
        (lambda w, n: w.update({n: w[n][:, :-1].contiguous()}), "size mismatch"),
        (lambda w, n: w.update({n: w[n] * float("nan")}), "NaN or Inf"),
        (lambda w, n: w.update({"base_model.model.extra": w[n].clone()}), "holds .*extra"),
    ],
)
def test_a_damaged_adapter_is_one_line(base, saved, change, message):
    broken(saved[0], change)
    with pytest.raises(MiloraError, match=message) as caught:
        load_adapter(base(), saved[0])
    assert "\n" not in str(caught.value)


def test_a_truncated_or_pickled_adapter_is_refused(base, saved):
    folder, _ = saved
    file = folder / "adapter_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MiloraError, match="broken or truncated"):
        load_adapter(base(), folder)
    file.unlink()
    with pytest.raises(MiloraError, match="holds no adapter_model"):
        load_adapter(base(), folder)
    torch.save({}, folder / "adapter_model.bin")
    with pytest.raises(MiloraError, match="pickled"):
        load_adapter(base(), folder)
    with pytest.raises(MiloraError, match="does not exist"):
        load_adapter(base(), folder / "nosuch")


def test_export_does_not_replace_a_folder_unasked(saved, tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "mine.txt").write_text("keep")
    with pytest.raises(MiloraError, match="--overwrite"):
        export_lora(saved[0], None, target)
    assert (target / "mine.txt").read_text() == "keep"
    with pytest.raises(MiloraError, match="is not only an adapter or a model"):
        export_lora(saved[0], None, target, overwrite=True)
    assert (target / "mine.txt").read_text() == "keep"
    for _ in range(2):
        export_lora(saved[0], None, tmp_path / "again", overwrite=True)
    with pytest.raises(MiloraError, match="which is read; --overwrite would delete it"):
        export_lora(tmp_path / "again", None, tmp_path / "again", overwrite=True)
    assert (tmp_path / "again" / "adapter_config.json").is_file()


def test_a_layer_that_is_not_linear_inside_a_plain_module_is_named():
    model = nn.Sequential()
    model.add_module("first", nn.Linear(6, 6))
    model.add_module("second", nn.Conv2d(3, 3, 1))
    with pytest.raises(MiloraError, match="second is a Conv2d"):
        get_peft_model(model, SpectralConfig(r=2, target_modules=["first", "second"]))


def test_a_flag_for_transposed_weights_does_not_transpose_a_linear_layer(base, ids):
    plain, flagged = adapt(base(), "milora"), adapt(base(), "milora", fan_in_fan_out=True)
    name = "base_model.model.model.layers.0.self_attn.v_proj"
    assert torch.equal(
        plain.get_submodule(name).spectral_L0["default"], flagged.get_submodule(name).spectral_L0["default"]
    )


def test_a_merged_model_that_is_cast_unmerges_in_its_new_dtype(base, ids):
    model = adapt(base(), "milora")
    train_steps(model, ids)
    model.merge_adapter()
    model.to(torch.bfloat16)
    model.unmerge_adapter()
    weight = model.get_submodule("base_model.model.model.layers.0.self_attn.v_proj").base_layer.weight
    assert torch.equal(weight, base(torch.bfloat16).model.layers[0].self_attn.v_proj.weight)


def test_a_safe_merge_looks_at_what_it_writes(base):
    model = adapt(base(torch.float16), "milora")
    layer = model.get_submodule("base_model.model.model.layers.0.self_attn.v_proj")
    layer.spectral_dR["default"].data += 1e6  # finite in float32, infinite in float16
    with pytest.raises(MiloraError, match="NaN or Inf"):
        model.merge_adapter(safe_merge=True)


def test_frozen_factors_stay_frozen_on_another_device(base):
    model = adapt(base(), "milora")
    layer = model.get_submodule("base_model.model.model.layers.0.self_attn.v_proj")
    layer._move_adapter_to_device_of_base_layer("default", torch.device("meta"))
    wanted = {"spectral_dL": True, "spectral_dR": True, "spectral_L0": False, "spectral_R0": False}
    assert {n: getattr(layer, n)["default"].requires_grad for n in wanted} == wanted
    assert layer.spectral_L0["default"].is_meta


def test_another_precision_is_said_to_be_unchecked(base, saved):
    with pytest.warns(UserWarning, match="made on a bfloat16 base, this one is float16: not compared"):
        load_adapter(base(torch.float16), saved[0])


def test_merging_into_a_tied_weight_is_refused(tiny_llama, tmp_path):
    config = AutoConfig.from_pretrained(tiny_llama, tie_word_embeddings=True)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "tied")
    adapted = adapt(model, "milora", target_modules=["lm_head", "q_proj"])
    adapted.save_pretrained(tmp_path / "adapter")
    with pytest.raises(MiloraError, match=r"lm_head shares its weight with model\.embed_tokens"):
        merge_adapter(tmp_path / "adapter", tmp_path / "tied", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_loaded_adapter_compiles_without_a_graph_break(base, ids, saved):
    loaded = load_adapter(base(), saved[0])
    layer = loaded.get_submodule("base_model.model.model.layers.0.self_attn.v_proj")
    assert layer._awaiting == set()
    x = torch.randn(3, 64)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), layer(x))

"""Fused experts: every expert's matrix by its own decomposition, and what is refused."""

from collections.abc import Callable

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    Llama4ForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers.models.llama4 import Llama4TextConfig

from adapters.steps import adapt, logits, train_steps
from conftest import byte_tokenizer
from milora.adapters import SpectralConfig, SpectralLinear, compose, export_lora, load_adapter, load_mixture
from milora.adapters.delta import deltas
from milora.adapters.experts import SpectralExperts
from milora.adapters.export import write_lora
from milora.adapters.gguf_lora import write_gguf_lora
from milora.adapters.merge import merge
from milora.decompositions import Part
from milora.errors import MiloraError
from milora.methods import METHODS, Choice

ABLE = sorted(n for n, m in METHODS.items() if m.trains <= {"L", "R"})
STACKS = ["gate_up_proj", "down_proj"]
SIZES = {
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=4)),
    "qwen3": lambda: Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, num_experts=4, moe_intermediate_size=24)),
    "gpt_oss": lambda: GptOssForCausalLM(GptOssConfig(**SIZES, num_local_experts=4)),  # keeps (experts, in, out)
}
every_model = pytest.mark.parametrize("kind", sorted(MODELS))
every_method = pytest.mark.parametrize("method", ABLE)


def fresh(kind: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODELS[kind]().to(dtype).eval()
        for name, parameter in model.named_parameters():
            if "experts" in name:
                parameter.data.normal_(0, 0.1)
    model.set_experts_implementation("eager")
    return model


def settings(**more) -> dict:
    return {"target_modules": ["q_proj"], "target_parameters": STACKS, "lora_dropout": 0.0, "r": 4, **more}


def experts(model: nn.Module) -> list[SpectralExperts]:
    return [m for m in model.modules() if isinstance(m, SpectralExperts)]


@every_model
@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_start_is_the_base_and_the_count_is_the_formula(kind, method, dtype, ids):
    model = fresh(kind, dtype)
    before = logits(model, ids)
    adapted = adapt(model, method, **settings())
    for training in (False, True):
        assert torch.equal(logits(adapted.train(training), ids), before)
    assert len(experts(adapted)) == 2
    for layer in experts(adapted):
        shapes = [layer._stored(p).shape for p in STACKS]
        expected = sum(e * METHODS[method].count(out, in_, Choice(4, 1.0)) for e, out, in_ in shapes)
        assert sum(p.numel() for p in layer.parameters() if p.requires_grad) == expected


@every_model
@every_method
def test_it_trains_and_what_was_trained_stays_itself(kind, method, ids, tmp_path, monkeypatch):
    model = fresh(kind)
    before = logits(model, ids)
    adapted = adapt(model, method, **settings())
    trainable = {n: p.detach().clone() for n, p in adapted.named_parameters() if p.requires_grad}
    frozen = {n: p.detach().clone() for n, p in adapted.named_parameters() if not p.requires_grad}
    train_steps(adapted, ids, lr=1e-2)
    now = dict(adapted.named_parameters())
    assert all(not torch.equal(now[n], p) for n, p in trainable.items())
    assert all(torch.equal(now[n], p) for n, p in frozen.items())
    adapted.set_adapter("default")
    assert {n for n, p in adapted.named_parameters() if p.requires_grad} == set(trainable)
    trained = logits(adapted, ids)
    assert float((trained - before).abs().max()) > 1e-3
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted, ids), before)

    adapted.save_pretrained(tmp_path / "own")
    export_lora(tmp_path / "own", None, tmp_path / "lora")
    exported = PeftModel.from_pretrained(fresh(kind), tmp_path / "lora")
    assert type(exported.base_model).__name__ == "LoraModel"
    assert torch.allclose(logits(exported, ids), trained, atol=1e-5, rtol=0)
    adapted.merge_adapter()
    assert torch.allclose(logits(adapted, ids), trained, atol=1e-5, rtol=0)
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted, ids), before)
    adapted.merge_adapter()
    adapted.unmerge_adapter()
    assert torch.equal(logits(adapted, ids), trained)
    assert torch.allclose(logits(adapted.merge_and_unload(), ids), trained, atol=1e-5, rtol=0)

    monkeypatch.setattr(Part, "compute", lambda *_, **__: pytest.fail("a decomposition was run"))
    for low_cpu_mem_usage in (False, True):
        loaded = PeftModel.from_pretrained(fresh(kind), tmp_path / "own", low_cpu_mem_usage=low_cpu_mem_usage)
        assert torch.equal(logits(loaded, ids), trained)
    of_transformers = fresh(kind)
    of_transformers.load_adapter(tmp_path / "own")
    assert torch.equal(logits(of_transformers, ids), trained)


@every_model
@pytest.mark.parametrize("method", ["milora", "pissa", "mica"])
def test_each_expert_has_its_own_subspace(kind, method):
    """In float64, against the full decomposition of each (out, in) matrix."""
    model = fresh(kind)
    base = {n: p.detach().double().clone() for n, p in model.named_parameters() if "experts" in n}
    adapted = adapt(model, method, **settings())
    seen = 0
    for i, layer in enumerate(experts(adapted)):
        for parameter in STACKS:
            stored = base[f"model.layers.{i}.mlp.experts.{parameter}"]
            for e, W in enumerate(stored.mT if kind == "gpt_oss" else stored):
                U = torch.linalg.svd(W, full_matrices=False)[0]
                U = U[:, :4] if method == "pissa" else U[:, -4:]
                L0 = getattr(layer, f"spectral_L0_{parameter}")["default"][e].detach().double()
                assert torch.allclose(U @ (U.T @ L0), L0, atol=1e-5)
                seen += 1
    assert seen == 16


def test_an_adapted_call_is_a_call_with_the_formulas_weights(ids):
    """W'_e = W_e + s (L_e R_e - L0_e R0_e), written out, in the place of each expert's weight."""
    adapted = adapt(fresh("mixtral"), "milora", **settings(lora_alpha=12))
    train_steps(adapted, ids, lr=1e-2)
    written = fresh("mixtral")
    for i, layer in enumerate(experts(adapted)):
        for parameter in STACKS:
            dL, dR, L0, R0 = (
                getattr(layer, f"spectral_{f}_{parameter}")["default"].detach() for f in ("dL", "dR", "L0", "R0")
            )
            change = 3 * ((L0 + dL) @ (R0 + dR) - L0 @ R0)
            written.get_parameter(f"model.layers.{i}.mlp.experts.{parameter}").data += change
        written.model.layers[i].self_attn.q_proj.weight.data += adapted.get_submodule(
            f"base_model.model.model.layers.{i}.self_attn.q_proj"
        ).get_delta_weight("default")
    assert torch.allclose(logits(written, ids), logits(adapted, ids), atol=1e-5, rtol=0)


def test_the_grouped_kernel_gives_what_the_loop_over_experts_gives(ids):
    adapted = adapt(fresh("mixtral"), "milora", **settings())
    train_steps(adapted, ids, lr=1e-2)
    eager = logits(adapted, ids)
    adapted.get_base_model().set_experts_implementation("grouped_mm")
    assert torch.allclose(logits(adapted, ids), eager, atol=1e-5, rtol=0)


def test_one_parameter_alone_several_adapters_and_patterns(ids, tmp_path):
    model = fresh("mixtral")
    before = logits(model, ids)
    adapted = adapt(model, "milora", **settings(target_modules=None, target_parameters=["experts.down_proj"]))
    assert not any(isinstance(m, SpectralLinear) for m in adapted.modules())
    train_steps(adapted, ids, lr=1e-2)
    trained = logits(adapted, ids)
    patterns = {"rank_pattern": {"gate_up_proj": 2}, "alpha_pattern": {"gate_up_proj": 6}}
    adapted.add_adapter("second", SpectralConfig(method="mica", **settings(**patterns)))
    adapted.set_adapter("second")
    assert torch.equal(logits(adapted, ids), before)
    layer = experts(adapted)[0]
    assert layer.spectral_L0_gate_up_proj["second"].shape == (4, 96, 2)
    assert layer.scales["second"] == {"gate_up_proj": 3.0, "down_proj": 1.0}
    train_steps(adapted, ids, lr=1e-2)
    second = logits(adapted, ids)
    adapted.save_pretrained(tmp_path, selected_adapters=["second"])
    export_lora(tmp_path / "second", None, tmp_path / "lora")
    for folder in ("second", "lora"):
        loaded = load_adapter(fresh("mixtral"), tmp_path / folder)
        assert torch.allclose(logits(loaded, ids), second, atol=1e-5, rtol=0)
    adapted.set_adapter("default")
    assert torch.equal(logits(adapted, ids), trained)
    adapted.delete_adapter("second")
    assert torch.equal(logits(adapted, ids), trained)


def test_experts_are_read_from_the_store_and_one_base_is_told_from_another(ids, tmp_path):
    adapted = adapt(fresh("mixtral"), "milora", **settings())
    adapted.save_pretrained(tmp_path)
    other = fresh("mixtral")
    other.model.layers[1].mlp.experts.down_proj.data[3, 0, 0] += 1
    with pytest.raises(MiloraError, match="this base has"):
        PeftModel.from_pretrained(other, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Part, "compute", lambda *_, **__: pytest.fail("a decomposition was run"))
        again = adapt(fresh("mixtral"), "milora", **settings())
    for name, value in adapted.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_ways_out_that_know_only_single_matrices_are_not_taken(ids, tmp_path):
    fresh("mixtral").save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    adapted = adapt(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), "milora", **settings())
    train_steps(adapted, ids, lr=1e-2)
    adapted.save_pretrained(tmp_path / "own")
    with pytest.raises(MiloraError, match=r"--rank: .*_proj holds the weights of many experts"):
        write_lora(tmp_path / "own", None, tmp_path / "out", rank=2)
    with pytest.raises(MiloraError, match=r"gguf-lora: .* holds the weights of many experts"):
        write_gguf_lora(tmp_path / "own", tmp_path / "base", tmp_path / "out.gguf")
    with pytest.raises(MiloraError, match=r"deltas: .* holds the weights of many experts"):
        dict(deltas(tmp_path / "own"))
    with pytest.raises(MiloraError, match=r"compose: .* holds the weights of many experts"):
        compose([tmp_path / "own", tmp_path / "own"], [0.5, 0.5], tmp_path / "both")
    _, why = merge(tmp_path / "own", tmp_path / "base", tmp_path / "merged")
    assert "holds the weights of many experts" in why
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.allclose(logits(merged, ids), logits(adapted, ids), atol=1e-5, rtol=0)


def test_a_mixture_in_memory_weighs_the_experts_too(ids, tmp_path):
    model = fresh("mixtral")
    before = logits(model, ids)
    adapted = adapt(model, "milora", **settings())
    train_steps(adapted, ids, lr=1e-2)
    adapted.save_pretrained(tmp_path)
    mixed, set_weights = load_mixture(fresh("mixtral"), [tmp_path, tmp_path])
    for weights, expected in (([0.5, 0.5], logits(adapted, ids)), ([1.0, -1.0], before)):
        set_weights(weights)
        assert torch.allclose(logits(mixed, ids), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w, n: w.pop(n), "experts.gate_up_proj: got the factors L0, R0, dL, allowed"),
        (lambda w, n: w.update({n: w[n][:-1].contiguous()}), r"dR .3, 4, 32., allowed .experts, out, r. and"),
    ],
)
def test_a_damaged_stack_is_one_line(ids, tmp_path, change, message):
    adapt(fresh("mixtral"), "milora", **settings()).save_pretrained(tmp_path / "own")
    file = tmp_path / "own" / "adapter_model.safetensors"
    weights = load_file(file)
    change(weights, next(n for n in weights if n.endswith("spectral_dR_gate_up_proj")))
    save_file(weights, file)
    with pytest.raises(MiloraError, match=message):
        export_lora(tmp_path / "own", None, tmp_path / "lora")
    with pytest.raises(MiloraError):
        load_adapter(fresh("mixtral"), tmp_path / "own")


def test_gradients_are_those_of_a_checkpointed_pass(ids):
    adapted = adapt(fresh("qwen3"), "milora", **settings())
    train_steps(adapted, ids)
    found = []
    for checkpointed in (False, True):
        if checkpointed:
            adapted.gradient_checkpointing_enable({"use_reentrant": False})
        adapted.train().zero_grad()
        adapted(input_ids=ids, labels=ids).loss.backward()
        found.append({n: p.grad.clone() for n, p in adapted.named_parameters() if p.grad is not None})
    assert all(torch.equal(found[1][n], g) for n, g in found[0].items())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"target_parameters": ["up_proj"]},
            "'up_proj' matches no parameter, allowed fused experts .down_proj, gate_up",
        ),
        ({"target_parameters": ["gate.weight"]}, "mlp.gate.weight has 2 dimensions, allowed 3"),
        ({"target_modules": ["qproj"]}, "target_modules: .'qproj'. matches nothing"),
        ({"magnitude": True}, "target_parameters: got magnitude, allowed"),
        ({"save_bases": False}, "target_parameters: got save_bases=False, allowed"),
        ({"lora_dropout": 0.1}, "lora_dropout: got 0.1 with target_parameters, allowed 0"),
        (
            {"r": 40, "target_modules": None},
            r"got 40 for model.layers.0.mlp.experts.0.gate_up_proj .96 x 32., allowed 1 to 32",
        ),
        ({"rank_pattern": {"experts.2.down_proj": 2}}, "got another for model.layers.0.mlp.experts.2.down_proj"),
        ({"target_modules": ["experts"], "target_parameters": None}, "experts is a MixtralExperts, allowed Linear"),
    ],
)
def test_a_wrong_request_is_one_line_and_leaves_the_model_alone(ids, more, message):
    model = fresh("mixtral")
    before = logits(model, ids)
    with pytest.raises(MiloraError, match=message) as caught:
        get_peft_model(model, SpectralConfig(method="milora", **settings(**more)))
    assert "\n" not in str(caught.value)
    assert not experts(model) and torch.equal(logits(model, ids), before)


@pytest.mark.parametrize("method", sorted(set(METHODS) - set(ABLE)))
def test_a_method_of_another_form_is_refused(method):
    with pytest.raises(MiloraError, match=f"target_parameters: got method {method}"):
        adapt(fresh("mixtral"), method, **settings())


def test_experts_whose_layout_is_not_known_are_refused():
    more = {"num_local_experts": 4, "moe_layers": [0, 1], "intermediate_size_mlp": 48, "attention_chunk_size": 16}
    model = Llama4ForCausalLM(Llama4TextConfig(**{**SIZES, **more}))
    with pytest.raises(MiloraError, match="is in a Llama4TextExperts, which does not say whether it keeps"):
        adapt(model, "milora", **settings(target_parameters=["gate_up_proj"]))


@every_model
def test_all_linear_says_that_fused_experts_stay_frozen(kind, recwarn):
    adapted = adapt(fresh(kind), "milora", target_modules="all-linear", r=4)
    said = [str(w.message) for w in recwarn if "stay frozen" in str(w.message)]
    assert len(said) == 1 and "down_proj, gate_up_proj are fused" in said[0]
    assert not experts(adapted)


def test_a_model_without_fused_experts_hears_nothing(base, recwarn):
    adapt(base(), "milora")
    assert not [w for w in recwarn if "stay frozen" in str(w.message)]


def test_a_folder_of_such_a_model_and_its_adapter_load_by_name(ids, tmp_path):
    fresh("mixtral").save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    adapted = adapt(base, "milora", **settings())
    train_steps(adapted, ids, lr=1e-2)
    adapted.save_pretrained(tmp_path / "own")
    again = load_adapter(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "own")
    assert torch.equal(logits(again, ids), logits(adapted, ids))


@pytest.mark.slow
def test_it_compiles_without_a_graph_break(ids):
    adapted = adapt(fresh("mixtral"), "milora", **settings())
    adapted.get_base_model().set_experts_implementation("grouped_mm")
    torch._dynamo.reset()
    explained = torch._dynamo.explain(adapted)(input_ids=ids, labels=ids)
    assert (explained.graph_count, explained.graph_break_count) == (1, 0), explained.break_reasons

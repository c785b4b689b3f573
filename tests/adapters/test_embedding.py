"""Embeddings: the laws on W_emb^T, PEFT's own MiCA on an embedding, and what is refused."""

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, BartConfig, BartForConditionalGeneration, Gemma3ForCausalLM
from transformers.models.gemma3 import Gemma3TextConfig

from adapters.steps import adapt, logits, sgd_steps, train_steps
from milora.adapters import SpectralConfig, compose, export_lora, load_adapter, merge_adapter
from milora.adapters.embedding import SpectralEmbedding
from milora.adapters.gguf_lora import write_gguf_lora
from milora.adapters.merge import merge
from milora.errors import MiloraError
from milora.methods import METHODS, Choice

every_method = pytest.mark.parametrize("method", sorted(METHODS))
TARGETS = ["embed_tokens", "q_proj"]
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 4e-2}


def gemma(dtype: torch.dtype = torch.float32, **settings) -> nn.Module:
    """A model that multiplies its embeddings by sqrt(dim)."""
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = Gemma3TextConfig(
            vocab_size=260,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            pad_token_id=0,
            **{"tie_word_embeddings": False, **heads, **settings},
        )
        return Gemma3ForCausalLM(config).to(dtype).eval()


@pytest.fixture(params=["llama", "gemma3"])
def model(request, base) -> Callable[..., nn.Module]:
    """A fresh model in a dtype: one with plain embeddings, one with scaled ones."""
    return base if request.param == "llama" else gemma


def embedding(model: nn.Module) -> SpectralEmbedding:
    found = next(m for m in model.modules() if isinstance(m, SpectralEmbedding))
    assert isinstance(found, SpectralEmbedding)
    return found


@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_laws_hold_on_an_embedding(model, ids, method, dtype, tmp_path):
    base = model(dtype)
    before = logits(base, ids)
    adapted = adapt(base, method, target_modules=TARGETS, save_bases=True)
    layer = embedding(adapted)
    assert layer.in_features == 259 + (before.shape[-1] == 260)
    for training in (False, True):
        assert torch.equal(logits(adapted.train(training), ids), before)
    of_it = {n: p for n, p in layer.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in of_it.values()) == METHODS[method].count(
        layer.out_features, layer.in_features, Choice(8, 1.0)
    )
    train_steps(adapted, ids)
    trained = logits(adapted, ids)
    assert not torch.equal(trained, before)
    if dtype == torch.float32:
        assert float((trained - before).abs().max()) > 10 * ROUNDING[dtype]
    assert all(bool(p.detach().ne(0).any()) for p in of_it.values())
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted, ids), before)
    adapted.save_pretrained(tmp_path / "own", save_embedding_layers=False)
    for low_cpu_mem_usage in (False, True):
        loaded = PeftModel.from_pretrained(model(dtype), tmp_path / "own", low_cpu_mem_usage=low_cpu_mem_usage)
        assert torch.equal(logits(loaded, ids), trained)
    export_lora(tmp_path / "own", None, tmp_path / "lora")
    exported = PeftModel.from_pretrained(model(dtype), tmp_path / "lora")
    assert type(exported.base_model).__name__ == "LoraModel"
    assert torch.allclose(logits(exported, ids), trained, atol=ROUNDING[dtype], rtol=0)
    adapted.merge_adapter()
    assert torch.allclose(logits(adapted, ids), trained, atol=ROUNDING[dtype], rtol=0)
    adapted.unmerge_adapter()
    assert torch.equal(logits(adapted, ids), trained)
    assert torch.allclose(logits(adapted.merge_and_unload(), ids), trained, atol=ROUNDING[dtype], rtol=0)


def test_the_output_is_the_formula(ids):
    """y_i = embed_scale (W e_i + s L0 R[:, i]), in float64 with numpy."""
    adapted = adapt(gemma(), "mica", target_modules=TARGETS, lora_alpha=24)
    train_steps(adapted, ids)
    layer = embedding(adapted)
    W, L0, R = (
        t.detach().double().numpy()
        for t in (layer.base_layer.weight, layer.spectral_L0["default"], layer.spectral_dR["default"])
    )
    y = math.sqrt(32) * (W.T + 3 * L0 @ R)[:, ids.numpy()]  # (dim, 2, 12)
    with torch.no_grad():
        found = layer(ids).double().numpy()
    assert np.allclose(found, y.transpose(1, 2, 0), atol=1e-4)


def test_mica_takes_the_minor_left_vectors_of_the_transposed_matrix_as_peft_does(base):
    W = base().model.embed_tokens.weight.detach().double().numpy().T  # (dim, vocabulary)
    U = np.linalg.svd(W, full_matrices=False)[0][:, -8:]
    ours = embedding(adapt(base(), "mica", target_modules=TARGETS)).spectral_L0["default"].detach().double().numpy()
    config = LoraConfig(r=8, init_lora_weights="mica", target_modules=TARGETS)
    theirs = get_peft_model(base(), config).get_submodule("base_model.model.model.embed_tokens")
    B = theirs.lora_embedding_B["default"].detach().double().numpy()
    assert ours.shape == B.shape == (64, 8)
    for L in (ours, B):
        assert np.allclose(L @ L.T, U @ U.T, atol=1e-5)


def test_training_mica_on_an_embedding_goes_where_pefts_goes(ids):
    """SGD steps do not depend on the signs of singular vectors; the embedding's scale enters both in the same way."""
    config = LoraConfig(r=8, lora_alpha=16, init_lora_weights="mica", target_modules=TARGETS)
    ours = adapt(gemma(), "mica", target_modules=TARGETS, lora_alpha=16, lora_dropout=0.0)
    found = []
    for model in (ours, get_peft_model(gemma(), config)):
        sgd_steps(model, ids, lr=0.05)
        found.append(logits(model, ids))
    assert torch.allclose(found[0], found[1], atol=2e-4, rtol=0)
    assert not torch.allclose(found[0], logits(gemma(), ids), atol=2e-2, rtol=0)


def test_ways_out_that_know_only_linear_layers_are_not_taken(base, ids, tiny_llama, tmp_path):
    adapted = adapt(base(), "milora", target_modules=TARGETS)
    train_steps(adapted, ids)
    adapted.save_pretrained(tmp_path / "own")
    with pytest.raises(MiloraError, match=r"gguf-lora: model\.embed_tokens is an embedding, allowed linear layers"):
        write_gguf_lora(tmp_path / "own", tiny_llama, tmp_path / "out.gguf")
    _, why = merge(tmp_path / "own", tiny_llama, tmp_path / "merged")
    assert why == "model.embed_tokens is an embedding"
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.allclose(logits(merged, ids), logits(adapted, ids), atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", ["mica", "milora"])
def test_adapters_of_an_embedding_are_added_up(base, ids, method, tmp_path):
    adapted = adapt(base(), method, target_modules=TARGETS)
    train_steps(adapted, ids)
    adapted.save_pretrained(tmp_path / "own", save_embedding_layers=False)
    done = compose([tmp_path / "own", tmp_path / "own"], [0.25, 0.75], tmp_path / "both")
    assert done.how == ("sum" if method == "mica" else "concatenation")
    composed = load_adapter(base(), tmp_path / "both")
    assert torch.allclose(logits(composed, ids), logits(adapted, ids), atol=1e-5, rtol=0)


def test_a_magnitude_stands_over_a_scaled_embedding(ids):
    base = gemma()
    before = logits(base, ids)
    adapted = adapt(base, "milora", target_modules=TARGETS, magnitude=True)
    assert torch.equal(logits(adapted, ids), before)
    train_steps(adapted, ids)
    assert bool(embedding(adapted).spectral_dg["default"].ne(0).any())
    trained = logits(adapted, ids)
    adapted.merge_adapter()
    assert torch.allclose(logits(adapted, ids), trained, atol=1e-5, rtol=0)


def test_an_embedding_keeps_its_base_weight(base):
    with pytest.raises(MiloraError, match=r"drop_base: got model\.embed_tokens, an embedding"):
        adapt(base(), "svf", target_modules=TARGETS, drop_base=True)


def test_the_padding_token_is_not_trained(base, ids):
    model = base()
    model.model.embed_tokens.padding_idx = 7
    ids = ids.clone()
    ids[:, 0] = 7
    adapted = adapt(model, "milora", target_modules=TARGETS)
    train_steps(adapted, ids)
    change = embedding(adapted).spectral_dR["default"].detach()  # (r, vocabulary)
    assert not bool(change[:, 7].any()) and bool(change[:, ids[0, 1]].any())


def test_an_export_holds_the_embeddings_factors_under_pefts_names_and_no_base_weight(base, ids, tmp_path):
    adapted = adapt(base(), "milora", target_modules=TARGETS)
    train_steps(adapted, ids)
    with pytest.warns(UserWarning, match="save_embedding_layers"):
        adapted.save_pretrained(tmp_path / "own")
    assert json.loads((tmp_path / "own" / "adapter_config.json").read_text())["embedding_modules"] == [
        "model.embed_tokens"
    ]
    assert torch.equal(logits(load_adapter(base(), tmp_path / "own"), ids), logits(adapted, ids))
    export_lora(tmp_path / "own", None, tmp_path / "lora")
    shapes = {n: tuple(t.shape) for n, t in load_file(tmp_path / "lora" / "adapter_model.safetensors").items()}
    inside = "base_model.model.model."
    assert shapes.pop(f"{inside}embed_tokens.lora_embedding_A") == (16, 259)
    assert shapes.pop(f"{inside}embed_tokens.lora_embedding_B") == (64, 16)
    assert set(shapes) == {f"{inside}layers.{i}.self_attn.q_proj.lora_{f}.weight" for i in (0, 1) for f in "AB"}


@pytest.mark.parametrize("target", ["embed_positions", "limited"])
def test_a_lookup_of_another_kind_is_refused_in_one_line(target):
    torch.manual_seed(0)
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    bart = BartForConditionalGeneration(
        BartConfig(
            vocab_size=96, d_model=16, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=32, **sizes
        )
    )
    limited = nn.Sequential()
    limited.add_module("limited", nn.Embedding(20, 8, max_norm=1.0))
    model, says = {
        "embed_positions": (bart, "embed_positions is a BartLearnedPositionalEmbedding, whose lookup is its own"),
        "limited": (limited, "limited has max_norm"),
    }[target]
    with pytest.raises(MiloraError, match=says):
        get_peft_model(model, SpectralConfig(method="mica", r=4, target_modules=[target]))
    assert not any(isinstance(m, SpectralEmbedding) for m in model.modules())


@pytest.fixture
def tied(tmp_path) -> Callable[[], nn.Module]:
    """A model whose head shares its embedding's weight, fresh from its folder."""
    gemma(tie_word_embeddings=True).save_pretrained(tmp_path / "tied")
    return lambda: AutoModelForCausalLM.from_pretrained(tmp_path / "tied").eval()


@every_method
@pytest.mark.parametrize(
    ("targets", "says"),
    [
        (["embed_tokens"], "only model.embed_tokens is adapted, lm_head keeps the base weight"),
        (["lm_head"], "only lm_head is adapted, model.embed_tokens keeps the base weight"),
        (["lm_head", "embed_tokens"], "are adapted each on its own"),
    ],
)
def test_of_tied_weights_only_the_targeted_use_is_adapted_and_that_is_said(tied, ids, method, targets, says, tmp_path):
    model = tied()
    before = logits(model, ids)
    with pytest.warns(UserWarning, match=f"shares its weight with .*: .*{says}; .* not merged"):
        adapted = adapt(model, method, target_modules=targets, save_bases=True)
    assert torch.equal(logits(adapted, ids), before)
    train_steps(adapted, ids)
    trained = logits(adapted, ids)
    assert not torch.equal(trained, before)
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted, ids), before)
    embedded = adapted.get_input_embeddings()(ids)
    assert torch.equal(embedded, tied().get_input_embeddings()(ids)) == ("embed_tokens" not in targets)
    for way in (adapted.merge_adapter, adapted.merge_and_unload):
        with pytest.raises(MiloraError, match="shares its weight with"):
            way()
    assert torch.equal(logits(adapted, ids), trained)
    adapted.save_pretrained(tmp_path / "own", save_embedding_layers=False)
    with pytest.warns(UserWarning, match="shares its weight"):
        assert torch.equal(logits(load_adapter(tied(), tmp_path / "own"), ids), trained)
    export_lora(tmp_path / "own", None, tmp_path / "lora")
    exported = PeftModel.from_pretrained(tied(), tmp_path / "lora")
    assert torch.allclose(logits(exported, ids), trained, atol=1e-5, rtol=0)
    with pytest.raises(MiloraError, match="shares its weight with"):
        merge_adapter(tmp_path / "own", tmp_path / "tied", tmp_path / "merged")


def test_weights_that_are_not_tied_cause_no_warning(base, recwarn):
    adapt(base(), "mica", target_modules=["lm_head", "embed_tokens"]).merge_and_unload()
    assert not [w for w in recwarn if "shares its weight" in str(w.message)]


def test_one_module_under_two_names_is_refused():
    model = nn.ModuleDict({"first": nn.Linear(8, 8), "second": nn.Linear(8, 8)})
    model["second"] = model["first"]
    with pytest.raises(MiloraError, match="first and second are one module"):
        get_peft_model(model, SpectralConfig(method="mica", r=4, target_modules=["first"]))

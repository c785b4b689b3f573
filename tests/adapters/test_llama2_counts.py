"""Trainable numbers on Llama-2-7B's shapes, on the meta device, against the papers' formulas and printed counts."""

import pytest
import torch
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from milora.adapters import SpectralConfig

ATTENTION = {name: (4096, 4096) for name in ("q_proj", "k_proj", "v_proj", "o_proj")}
MLP = {"gate_proj": (11008, 4096), "up_proj": (11008, 4096), "down_proj": (4096, 11008)}
ALL = ATTENTION | MLP  # (out, in)
LAYERS, K = 32, 4096


@pytest.fixture(scope="module")
def llama_2_7b():
    config = LlamaConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=LAYERS, num_attention_heads=32
    )

    def make():
        with torch.device("meta"):
            return LlamaForCausalLM(config)

    return make


def each(names, of):
    return LAYERS * sum(of(*ALL[name]) for name in names)


FIVE = ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj")  # where the MiLoRA paper adapts
CASES = [
    ("milora", {"r": 32}, FIVE, each(FIVE, lambda o, i: 32 * (o + i))),
    ("pissa", {"r": 64}, FIVE, each(FIVE, lambda o, i: 64 * (o + i))),
    ("random_components", {"r": 16}, tuple(ALL), each(ALL, lambda o, i: 16 * (o + i))),
    ("mica", {"r": 32}, tuple(ALL), each(ALL, lambda o, i: 32 * i)),
    ("mica", {"r": 16}, ("q_proj", "v_proj"), 4_194_304),  # the MiCA paper's 4M
    ("lora_xs", {"r": 64}, tuple(ALL), LAYERS * 7 * 64**2),
    ("svf", {}, tuple(ALL), LAYERS * 7 * K),
    ("svf", {}, tuple(MLP), 393_216),  # what the authors' code trains on Llama-3-8B: k is 4096 there too
    ("svft", {}, tuple(ALL), LAYERS * 7 * K),
    ("svft", {"pattern": "banded", "d": 16}, tuple(ALL), LAYERS * 7 * (K * 33 - 16 * 17)),
    ("svft", {"pattern": "random", "d": 16}, tuple(ALL), LAYERS * 7 * 134_896),  # their count at k = 4096, d = 16
    ("svft", {"pattern": "top_k", "entries": 1000}, tuple(ATTENTION), LAYERS * 4 * 1000),
    ("svft", {"svd_rank": 128}, tuple(ALL), LAYERS * 7 * 128),
    ("milora", {"r": 32, "magnitude": True}, FIVE, each(FIVE, lambda o, i: 32 * (o + i) + o)),
    ("lora_xs", {"r": 32, "components": "bottom", "use_rslora": True}, tuple(ALL), LAYERS * 7 * 32**2),
]


@pytest.mark.parametrize(("method", "settings", "targets", "count"), CASES, ids=lambda c: str(c)[:40])
def test_counts_on_llama_2_7b(llama_2_7b, method, settings, targets, count):
    config = SpectralConfig(method=method, target_modules=list(targets), **settings)
    model = get_peft_model(llama_2_7b(), config)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.is_meta for p in trained)
    assert sum(p.numel() for p in trained) == count


def test_the_milora_papers_share():
    """r = 32 on five modules is the 0.83 % of the weights that LLM-Adapters and MiLoRA print for LLaMA-2-7B."""
    count = dict((m, c) for m, s, t, c in CASES if m == "milora" and s == {"r": 32})["milora"]
    assert 100 * count / 6_738_415_616 == pytest.approx(0.83, abs=0.005)

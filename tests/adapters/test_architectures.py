"""Encoders, encoder-decoders, Conv1D and vision models: the laws hold for whatever lies around the linear layers."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from adapters.steps import adapt
from milora.adapters import SpectralLinear, export_lora
from milora.methods import METHODS

VOCABULARY = 96


@dataclass(frozen=True)
class Architecture:
    """A tiny random model of one kind.

    Attributes:
        model: makes it, in a dtype.
        inputs: one batch with labels.
        settings: of the configuration: where to adapt, the task type.
        layers: how many layers are adapted.
    """

    model: Callable[[], PreTrainedModel]
    inputs: Callable[[], dict[str, Tensor]]
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    layers: int = 0

    def fresh(self, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        """The same weights every time, in eval mode."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return self.model().to(dtype).eval()

    def batch(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """The batch, with images in the model's dtype."""
        return {n: t.to(dtype) if t.is_floating_point() else t for n, t in self.inputs().items()}

    def adapt(self, model: nn.Module, method: str, **settings: Any) -> PeftModel:
        """The model, adapted where this kind is."""
        return adapt(model, method, **{"task_type": None, **self.settings, **settings})


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def tokens(length: int) -> Tensor:
    return torch.randint(3, VOCABULARY, (2, length), generator=generator())


def roberta() -> PreTrainedModel:
    return RobertaForSequenceClassification(
        RobertaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=24,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            num_labels=3,
        )
    )


def t5() -> PreTrainedModel:
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=VOCABULARY,
            d_model=32,
            d_kv=8,
            d_ff=48,
            num_layers=2,
            num_decoder_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            decoder_start_token_id=0,
        )
    )


def gpt2() -> PreTrainedModel:
    dropouts = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_positions=24, n_embd=32, n_layer=2, n_head=4, **dropouts)
    )


def vit() -> PreTrainedModel:
    return ViTForImageClassification(
        ViTConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=16,
            patch_size=4,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            num_labels=3,
        )
    )


ARCHITECTURES = {
    "roberta": Architecture(
        roberta,
        lambda: {"input_ids": tokens(10), "labels": torch.tensor([0, 2])},
        {"target_modules": "all-linear", "task_type": "SEQ_CLS", "modules_to_save": ["classifier"]},
        12,
    ),
    "t5": Architecture(
        t5,
        lambda: {"input_ids": tokens(10), "labels": tokens(6)},
        {"target_modules": ["q", "v", "wi", "wo"], "task_type": "SEQ_2_SEQ_LM"},
        2 * 4 + 2 * 6,
    ),
    "gpt2": Architecture(
        gpt2,
        lambda: {"input_ids": tokens(10), "labels": tokens(10)},
        {"target_modules": "all-linear", "task_type": "CAUSAL_LM"},
        8,
    ),
    "vit": Architecture(
        vit,
        lambda: {"pixel_values": torch.randn(2, 3, 16, 16, generator=generator()), "labels": torch.tensor([0, 2])},
        {"target_modules": "all-linear", "modules_to_save": ["classifier"]},
        12,
    ),
}
every_kind = pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
every_method = pytest.mark.parametrize("method", sorted(METHODS))


def logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**batch).logits


def train_steps(model: nn.Module, batch: dict[str, Tensor], steps: int = 3) -> list[str]:
    """A few AdamW steps, then eval mode; the names of the trainable parameters that got no gradient."""
    torch.manual_seed(0)
    model.train()
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trainable.values(), lr=1e-2)
    without: list[str] = []
    for _ in range(steps):
        model(**batch).loss.backward()
        without = [n for n, p in trainable.items() if p.grad is None or not bool(p.grad.any())]
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    return without


@every_kind
@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_start_is_the_base(kind, method, dtype):
    architecture = ARCHITECTURES[kind]
    model, batch = architecture.fresh(dtype), architecture.batch(dtype)
    before = {training: logits(model.train(training), batch) for training in (True, False)}
    adapted = architecture.adapt(model, method)
    assert sum(isinstance(m, SpectralLinear) for m in adapted.modules()) == architecture.layers
    for training, expected in before.items():
        assert torch.equal(logits(adapted.train(training), batch), expected)


@every_kind
@every_method
def test_it_trains_and_what_was_trained_stays_itself(kind, method, tmp_path):
    architecture = ARCHITECTURES[kind]
    model, batch = architecture.fresh(), architecture.batch()
    before = logits(model, batch)
    adapted = architecture.adapt(model, method, save_bases=True)
    assert train_steps(adapted, batch) == []
    trained = logits(adapted, batch)
    assert float((trained - before).abs().max()) > 1e-3
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted, batch), before)
    adapted.save_pretrained(tmp_path / "own")
    for low_cpu_mem_usage in (False, True):
        loaded = PeftModel.from_pretrained(architecture.fresh(), tmp_path / "own", low_cpu_mem_usage=low_cpu_mem_usage)
        assert torch.equal(logits(loaded, batch), trained)
    adapted.merge_adapter()
    assert torch.allclose(logits(adapted, batch), trained, atol=1e-5, rtol=0)
    adapted.unmerge_adapter()
    assert torch.equal(logits(adapted, batch), trained)
    merged = copy.deepcopy(adapted).merge_and_unload()
    assert torch.allclose(logits(merged, batch), trained, atol=1e-5, rtol=0)
    export_lora(tmp_path / "own", None, tmp_path / "lora")
    exported = PeftModel.from_pretrained(architecture.fresh(), tmp_path / "lora")
    assert torch.allclose(logits(exported, batch), trained, atol=1e-5, rtol=0)


@every_method
def test_the_layer_that_t5_keeps_in_float32_stays_there(method, tmp_path):
    architecture = ARCHITECTURES["t5"]
    architecture.fresh().save_pretrained(tmp_path / "t5")

    def base() -> PreTrainedModel:
        return T5ForConditionalGeneration.from_pretrained(tmp_path / "t5", dtype=torch.float16).eval()

    model, batch = base(), architecture.batch()
    before = logits(model, batch)
    adapted = architecture.adapt(model, method)
    layers = {n: m for n, m in adapted.named_modules() if isinstance(m, SpectralLinear)}
    dtypes = {n.rsplit(".", 1)[-1]: m.weight.dtype for n, m in layers.items()}
    assert dtypes == {"q": torch.float16, "v": torch.float16, "wi": torch.float16, "wo": torch.float32}
    assert torch.equal(logits(adapted, batch), before)
    assert train_steps(adapted, batch) == []
    trained = logits(adapted, batch)
    assert bool(trained.isfinite().all()) and not torch.equal(trained, before)
    adapted.save_pretrained(tmp_path / "own")
    assert torch.equal(logits(PeftModel.from_pretrained(base(), tmp_path / "own"), batch), trained)

"""Every law for every method, in both precisions, on every kind of base layer: counted, and nothing left out.

A cell is one law of one method in one precision on one kind of layer. Each test judges all cells of its kind and prints
how many there were; a method that joins the registry joins the count.
"""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from adapters.quantised import quantised
from adapters.steps import adapt, logits, train_steps
from milora.adapters import SpectralLinear, export_lora
from milora.decompositions import Part
from milora.methods import METHODS, Choice

DTYPES = (torch.float32, torch.bfloat16)
LAWS = 7
R = 8
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 5e-2}


class Cell:
    """One method in one precision on one kind of base; a law is a method of this class."""

    def __init__(self, kind: str, method: str, dtype: torch.dtype, folder: Path, scratch: Path) -> None:
        self.kind, self.method, self.dtype, self.folder, self.scratch = kind, method, dtype, folder, scratch
        self.ids = torch.randint(3, 250, (2, 12), generator=torch.Generator().manual_seed(3))
        self.name = f"{method}, {str(dtype).removeprefix('torch.')}, {kind}"
        self.quantised = kind.startswith("bnb")

    def base(self) -> nn.Module:
        """A fresh base model in eval mode."""
        if self.quantised:
            return quantised(self.folder, self.kind, self.dtype)
        return AutoModelForCausalLM.from_pretrained(self.folder, dtype=self.dtype).eval()

    def adapted(self, **settings: object) -> PeftModel:
        """An adapted base."""
        return adapt(self.base(), self.method, r=R, **settings)

    def trained(self) -> tuple[PeftModel, torch.Tensor]:
        """An adapted base after three steps, and its logits, which are not the base's."""
        model = self.adapted()
        before = logits(model, self.ids)
        train_steps(model, self.ids)
        after = logits(model, self.ids)
        assert not torch.equal(after, before), self.name
        return model, after

    def law_1_the_start_is_the_base(self) -> None:
        base = self.base()
        wanted = {mode: logits(base.train(mode), self.ids) for mode in (False, True)}
        model = self.adapted()
        for mode, right in wanted.items():
            assert torch.equal(logits(model.train(mode), self.ids), right), self.name

    def law_2_disabled_is_the_base(self) -> None:
        before = logits(self.base(), self.ids)
        model, after = self.trained()
        with model.disable_adapter():
            assert torch.equal(logits(model, self.ids), before), self.name
        assert torch.equal(logits(model, self.ids), after), self.name

    def law_3_only_what_is_declared_trains(self) -> None:
        model = self.adapted()
        layers = [m for m in model.modules() if isinstance(m, SpectralLinear)]
        counted = sum(METHODS[self.method].count(m.out_features, m.in_features, Choice(R, 1.0)) for m in layers)
        trained = {n for n, p in model.named_parameters() if p.requires_grad}
        assert sum(p.numel() for n, p in model.named_parameters() if n in trained) == counted > 0, self.name
        start = {n: p.detach().clone() for n, p in model.named_parameters()}
        train_steps(model, self.ids)
        moved = {n for n, p in model.named_parameters() if not torch.equal(p, start[n])}
        assert moved == trained, self.name

    def law_4_saved_and_loaded_is_the_same(self) -> None:
        model, after = self.trained()
        model.save_pretrained(self.scratch / "saved")
        compute = Part.compute
        Part.compute = lambda *_, **__: pytest.fail(f"{self.name}: a decomposition was run")
        try:
            loaded = PeftModel.from_pretrained(self.base(), self.scratch / "saved")
        finally:
            Part.compute = compute
        assert torch.equal(logits(loaded, self.ids), after), self.name

    def law_5_merged_unmerged_and_exported_are_the_same(self) -> None:
        model, after = self.trained()
        model.save_pretrained(self.scratch / "own")
        base = logits(self.base(), self.ids)
        model.merge_adapter()
        merged = logits(model, self.ids)
        if self.quantised:  # a merged weight is quantised again, which costs more than rounding
            assert bool(torch.isfinite(merged).all()) and not torch.equal(merged, base), self.name
        else:
            assert torch.allclose(merged, after, atol=ROUNDING[self.dtype], rtol=0), self.name
        model.unmerge_adapter()
        assert torch.equal(logits(model, self.ids), after), self.name
        export_lora(self.scratch / "own", str(self.folder), self.scratch / "lora", overwrite=True)
        exported = PeftModel.from_pretrained(self.base(), self.scratch / "lora")
        assert type(exported.base_model).__name__ == "LoraModel"
        found = logits(exported, self.ids)
        allowed = ROUNDING[torch.bfloat16] if self.quantised else ROUNDING[self.dtype]
        assert torch.allclose(found, after, atol=allowed, rtol=0), (self.name, float((found - after).abs().max()))

    def law_6_one_weight_gives_one_set_of_factors(self) -> None:
        first, second = (dict(self.adapted().named_parameters()) for _ in range(2))
        assert set(first) == set(second)
        assert all(torch.equal(p, second[n]) for n, p in first.items()), self.name

    def law_7_resumed_is_not_stopped(self) -> None:
        def optimizer(model: nn.Module) -> torch.optim.Optimizer:
            return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)

        def step(model: nn.Module, by: torch.optim.Optimizer) -> None:
            model.train()(input_ids=self.ids, labels=self.ids).loss.backward()
            by.step()
            by.zero_grad()

        whole = self.adapted(lora_dropout=0.0)
        by = optimizer(whole)
        step(whole, by)
        whole.save_pretrained(self.scratch / "half")
        state = copy.deepcopy(by.state_dict())
        step(whole, by)
        resumed = PeftModel.from_pretrained(self.base(), self.scratch / "half", is_trainable=True)
        by = optimizer(resumed)
        by.load_state_dict(state)
        step(resumed, by)
        assert torch.equal(logits(resumed.eval(), self.ids), logits(whole.eval(), self.ids)), self.name

    def laws(self) -> list[Callable[[], None]]:
        """All laws."""
        return [getattr(self, name) for name in sorted(dir(self)) if name.startswith("law_")]


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-2, whose linear layers are Conv1D."""
    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}  # the base must be the same twice
    config = GPT2Config(vocab_size=260, n_positions=32, n_embd=32, n_layer=2, n_head=2, **no_dropout)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("kind", ["Linear", "Conv1D", "bnb-8bit", "bnb-4bit"])
def test_every_law_for_every_method(
    kind: str, method: str, tiny_llama: Path, gpt2: Path, tmp_path: Path, record_property
):
    judged = []
    for dtype in DTYPES:
        cell = Cell(kind, method, dtype, gpt2 if kind == "Conv1D" else tiny_llama, tmp_path)
        laws = cell.laws()
        assert len(laws) == LAWS
        for law in laws:
            law()
            judged.append((dtype, law.__name__))
    assert len(judged) == len(DTYPES) * LAWS
    record_property("cells", len(judged))
    print(f"{kind}, {method}: {len(judged)} cells judged")

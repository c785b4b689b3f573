"""transformers' own door to PEFT, PEFT's Auto classes, torch.compile and gradient checkpointing."""

import shutil

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from adapters.steps import adapt, logits, train_steps
from milora.adapters import SpectralConfig, SpectralLinear
from milora.decompositions import Part
from milora.errors import MiloraError
from milora.methods import METHODS

GENERATED = ("lora_xs", "mica", "milora", "svft")  # by inductor: a dense and a scattered core, one factor and two
pytestmark = pytest.mark.parametrize("method", sorted(METHODS))


def config(method: str) -> SpectralConfig:
    return SpectralConfig(method=method, r=8, lora_dropout=0.3, target_modules="all-linear", task_type="CAUSAL_LM")


def trainable(model: nn.Module) -> set[str]:
    """The names of the trainable parameters, without what PEFT puts in front."""
    return {n.removeprefix("base_model.model.") for n, p in model.named_parameters() if p.requires_grad}


@pytest.fixture
def computed(monkeypatch) -> list[str]:
    """The parts of decompositions that were computed."""
    asked: list[str] = []
    compute = Part.compute
    monkeypatch.setattr(Part, "compute", lambda self, W, strict=False: (asked.append(self.name), compute(self, W))[1])
    return asked


@pytest.fixture
def saved(base, ids, method, tmp_path):
    """A trained adapter's folder and its logits."""
    adapted = adapt(base(), method)
    train_steps(adapted, ids)
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", logits(adapted, ids)


def test_a_model_of_transformers_takes_trains_and_saves_an_adapter(base, ids, method, tmp_path):
    model = base()
    before = logits(model, ids)
    model.add_adapter(config(method))
    assert sum(isinstance(m, SpectralLinear) for m in model.modules()) == 14
    for training in (True, False):
        assert torch.equal(logits(model.train(training), ids), before)
    assert trainable(model) == trainable(adapt(base(), method))
    train_steps(model, ids)
    trained = logits(model, ids)
    assert not torch.equal(trained, before)
    model.disable_adapters()
    assert torch.equal(logits(model, ids), before)
    model.enable_adapters()
    assert torch.equal(logits(model, ids), trained)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path), ids), trained)
    assert torch.equal(logits(PeftModel.from_pretrained(base(), tmp_path), ids), trained)


def test_a_model_of_transformers_loads_a_saved_adapter(base, ids, method, saved, computed):
    folder, trained = saved
    model = base()
    before = logits(model, ids)
    model.load_adapter(folder)
    assert torch.equal(logits(model, ids), trained)
    assert trainable(model) == set()
    # A second one beside it; transformers' report calls the first one missing, and leaves it alone.
    model.load_adapter(folder, adapter_name="second")
    for name in ("second", "default"):
        model.set_adapter(name)
        assert torch.equal(logits(model, ids), trained)
    model.delete_adapter("second")
    assert torch.equal(logits(model, ids), trained)
    model.disable_adapters()
    assert torch.equal(logits(model, ids), before)
    assert computed == []


def test_an_adapter_that_transformers_loads_to_train_on_trains_what_the_method_says(base, ids, method, saved):
    model = base()
    model.load_adapter(saved[0], is_trainable=True)
    assert trainable(model) == trainable(adapt(base(), method))
    again = PeftModel.from_pretrained(base(), saved[0], is_trainable=True)
    for trained_on in (model, again):
        train_steps(trained_on, ids)
    assert torch.equal(logits(model, ids), logits(again, ids))
    assert not torch.equal(logits(model, ids), saved[1])


def test_transformers_refuses_another_base_and_leaves_the_model_alone(base, ids, method, saved):
    other = base()
    other.model.layers[0].mlp.up_proj.weight.data[0, 0] += 1
    before = logits(other, ids)
    with pytest.raises(MiloraError, match="this base has"):
        other.load_adapter(saved[0])
    assert not any(isinstance(m, SpectralLinear) for m in other.modules())
    assert torch.equal(logits(other, ids), before)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_auto_classes_load_it_without_a_decomposition(ids, method, saved, computed, low_cpu_mem_usage):
    folder, trained = saved
    model = AutoPeftModelForCausalLM.from_pretrained(folder, low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(logits(model, ids), trained)
    assert not any(p.is_meta for p in model.parameters())
    assert trainable(model) == set() and computed == []


def gradients(model: nn.Module, ids: Tensor, run: nn.Module | None = None) -> dict[str, Tensor]:
    """The gradients of one training step, and the loss."""
    model.zero_grad()
    loss = (model if run is None else run)(input_ids=ids, labels=ids).loss
    loss.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    assert set(found) == {n for n, p in model.named_parameters() if p.requires_grad}
    return {**found, "loss": loss.detach()}


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(base, ids, method, use_reentrant):
    model = adapt(base(), method, lora_dropout=0.0)
    train_steps(model, ids)
    model.train()
    plain = gradients(model, ids)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    if use_reentrant:
        model.enable_input_require_grads()
    assert model.is_gradient_checkpointing
    checkpointed = gradients(model, ids)
    assert all(torch.equal(checkpointed[n], g) for n, g in plain.items())


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_layer_compiles_whole(base, ids, method, dropout):
    model = adapt(base(), method, lora_dropout=dropout)
    train_steps(model, ids)
    layer = model.get_submodule("base_model.model.model.layers.0.self_attn.v_proj").train()
    torch._dynamo.reset()
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.manual_seed(1)
    found = compiled(x)
    torch.manual_seed(1)
    assert torch.allclose(found, layer(x), atol=1e-6, rtol=0)


def test_what_transformers_loaded_compiles_before_it_was_ever_used(base, method, saved):
    model = base()
    model.load_adapter(saved[0])
    layer = model.get_submodule("model.layers.0.self_attn.v_proj")
    torch._dynamo.reset()
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.compile(layer, fullgraph=True, backend="eager")(x), layer(x))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_model_compiles_whole_and_gives_what_eager_gives(base, ids, method, backend):
    if backend == "inductor" and method not in GENERATED:
        pytest.skip(f"inductor's code is tried with {', '.join(GENERATED)} alone, whose operations are all there are")
    if backend == "inductor" and shutil.which("g++") is None:
        pytest.skip("inductor needs a C++ compiler, and there is no g++")
    model = adapt(base(), method, lora_dropout=0.0)
    train_steps(model, ids)
    torch._dynamo.reset()
    if backend == "aot_eager":
        explained = torch._dynamo.explain(model)(input_ids=ids, labels=ids)
        assert (explained.graph_count, explained.graph_break_count) == (1, 0), explained.break_reasons
        torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    assert torch.allclose(logits(compiled, ids), logits(model, ids), atol=1e-5, rtol=0)
    model.train()
    eager, found = gradients(model, ids), gradients(model, ids, compiled)
    for name, gradient in eager.items():
        assert torch.allclose(found[name], gradient, atol=1e-6, rtol=1e-4), name

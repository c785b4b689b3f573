"""The laws on a real model: SmolLM2-135M-Instruct, all linear layers, r = 32, dropout 0.05.

milora and pissa on the whole model, in float32 and bfloat16; the other methods in float32 on its first six blocks, a
fifth of the work. (All methods in both dtypes: test_laws_matrix.py, on small layers.)
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from adapters.steps import adapt, logits, train_steps
from milora.adapters import SpectralLinear, export_lora
from milora.demo import stock_peft
from milora.methods import METHODS, Choice

pytestmark = pytest.mark.slow
R = 32
IDS = torch.randint(5, 40000, (2, 16), generator=torch.Generator().manual_seed(0))
# Another order of rounding through 30 layers, on logits around 20, as a mean over all logits, in float32.
ROUNDING = 1e-4


WHOLE = ("milora", "pissa")
BLOCKS, LINEAR = 6, 7  # blocks of the shallow model, linear layers of a block


@pytest.fixture(scope="module")
def shallow(smollm2, tmp_path_factory):
    """The folder of the first blocks with the embedding and the head, as a model of their own."""
    folder = tmp_path_factory.mktemp("shallow")
    AutoModelForCausalLM.from_pretrained(smollm2, num_hidden_layers=BLOCKS).save_pretrained(folder)
    AutoTokenizer.from_pretrained(smollm2).save_pretrained(folder)
    return folder


def fresh(smollm2, dtype):
    return AutoModelForCausalLM.from_pretrained(smollm2, dtype=dtype).eval()


def mean_difference(a, b):
    return float((a.float() - b.float()).abs().mean())


def in_another_process(script, *arguments, folder):
    save_file({"ids": IDS}, folder / "ids.safetensors")
    files = [str(folder / "ids.safetensors"), str(folder / "logits.safetensors")]
    done = subprocess.run([sys.executable, script, *arguments, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return load_file(folder / "logits.safetensors")["logits"]


@pytest.mark.parametrize(
    ("method", "dtype"),
    [*((method, torch.float32) for method in sorted(METHODS)), *((method, torch.bfloat16) for method in WHOLE)],
    ids=str,
)
def test_the_laws_hold(smollm2, shallow, tmp_path, method, dtype):
    smollm2, blocks = (smollm2, 30) if method in WHOLE else (shallow, BLOCKS)
    model = fresh(smollm2, dtype)
    before = logits(model, IDS)
    adapted = adapt(model, method, r=R, lora_dropout=0.05)
    layers = [m for m in adapted.modules() if isinstance(m, SpectralLinear)]
    assert len(layers) == blocks * LINEAR
    # 1: the start is the base, bit for bit, in train mode with dropout and in eval mode
    assert torch.equal(logits(adapted.train(), IDS), before)
    assert torch.equal(logits(adapted.eval(), IDS), before)
    # 3: the count is the formula's
    trainable = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert trainable == sum(METHODS[method].count(m.out_features, m.in_features, Choice(R, 1.0)) for m in layers)
    train_steps(adapted, IDS, steps=2, lr=1e-3)
    trained = logits(adapted, IDS)
    assert float((trained - before).abs().max()) > 0.1
    # 2: disabled is the base
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted, IDS), before)
    # 4: a fresh process gives the same bits and decomposes nothing
    adapted.save_pretrained(tmp_path / "own")
    name = str(dtype).removeprefix("torch.")
    script = str(Path(__file__).with_name("fresh_process.py"))
    again = in_another_process(script, str(smollm2), str(tmp_path / "own"), name, folder=tmp_path)
    assert torch.equal(again, trained)
    # 5: exported to stock PEFT, and merged, it is the same within rounding; unmerged it is as before
    exact, allowed = trained, ROUNDING
    if dtype == torch.bfloat16:
        # A forward pass in bfloat16 is itself off by several units in single logits, more on some processors than on
        # others. The measure is how far this adapter's own pass is from one in float32 on the same weights.
        exact = logits(PeftModel.from_pretrained(fresh(smollm2, dtype).float(), tmp_path / "own"), IDS)
        allowed = 2 * mean_difference(trained, exact)
    export_lora(tmp_path / "own", None, tmp_path / "lora")
    exported = PeftModel.from_pretrained(fresh(smollm2, dtype), tmp_path / "lora")
    assert mean_difference(logits(exported, IDS), exact) <= allowed
    adapted.merge_adapter()
    assert mean_difference(logits(adapted, IDS), exact) <= allowed
    adapted.unmerge_adapter()
    assert torch.equal(logits(adapted, IDS), trained)


def test_an_export_needs_nothing_of_this_package(smollm2, tmp_path):
    adapted = adapt(fresh(smollm2, torch.float32), "milora", r=R)
    train_steps(adapted, IDS, steps=1, lr=1e-3)
    adapted.save_pretrained(tmp_path / "own")
    export_lora(tmp_path / "own", None, tmp_path / "lora")
    arguments = (str(smollm2), str(tmp_path / "lora"))
    stock = in_another_process(stock_peft.__file__, *arguments, folder=tmp_path)
    assert mean_difference(stock, logits(adapted, IDS)) <= ROUNDING


def test_pefts_pissa_does_not_start_at_the_base_in_bfloat16(smollm2, record_property):
    """The reason for the form that is used here: PEFT's rewritten base weights lose digits."""
    model = fresh(smollm2, torch.bfloat16)
    before = logits(model, IDS)
    theirs = get_peft_model(
        model, LoraConfig(r=R, lora_alpha=R, init_lora_weights="pissa", target_modules="all-linear")
    )
    difference = float((logits(theirs, IDS) - before).abs().max())
    record_property("largest_logit_difference", difference)
    assert difference > 0.5

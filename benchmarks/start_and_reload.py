"""How far the logits move before training, and after saving and loading in a fresh process: ours and PEFT's.

    python benchmarks/start_and_reload.py --model_name_or_path M --output benchmarks/results/start_and_reload.json

All linear layers, r = 32, alpha = 32, bfloat16. Ours in train mode with dropout 0.05; PEFT's without dropout, which
would move them further. For the reload every adapter gets the same small change first. Largest absolute difference of a
logit, over 2 x 16 random tokens.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from milora import SpectralConfig
from milora.decompositions import Store, using
from milora.methods import METHODS
from milora.models.atomic import write_text
from milora.runs.provenance import hardware, versions

R = 32
IDS = torch.randint(5, 40000, (2, 16), generator=torch.Generator().manual_seed(0))
CHILD = """
import sys, torch, milora
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
base, adapter, ids, output = sys.argv[1:]
count = [0]
for room, name in ((torch.linalg, "svd"), (torch, "svd_lowrank")):
    def counted(*a, _of=getattr(room, name), **k):
        count[0] += 1
        return _of(*a, **k)
    setattr(room, name, counted)
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16), adapter).eval()
with torch.no_grad():
    logits = model(input_ids=load_file(ids)["ids"]).logits.float().contiguous()
save_file({"logits": logits}, output)
print("decompositions", count[0])
"""


def logits(model: Any) -> torch.Tensor:
    """Logits (2, 16, vocabulary) in float32."""
    with torch.no_grad():
        return model(input_ids=IDS).logits.float()


def change(model: Any) -> None:
    """The same small step on whatever trains."""
    generator = torch.Generator().manual_seed(1)
    for parameter in (p for p in model.parameters() if p.requires_grad):
        step = torch.randn(parameter.shape, generator=generator) * 1e-3
        parameter.data += step.to(parameter.dtype)


def measure(base: str, config: Callable[[], PeftConfig], train_mode: bool) -> dict[str, Any]:
    """One method: its start, its disabled state, and its reload."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).eval()
    before = logits(model)
    adapted: PeftModel = get_peft_model(model, config())  # pyright: ignore[reportAssignmentType]
    start = float((logits(adapted.train(train_mode)) - before).abs().max())
    with adapted.eval().disable_adapter():
        disabled = float((logits(adapted) - before).abs().max())
    change(adapted)
    trained = logits(adapted)
    with tempfile.TemporaryDirectory() as folder:
        adapted.save_pretrained(f"{folder}/adapter")
        save_file({"ids": IDS}, f"{folder}/ids.safetensors")
        arguments = [base, f"{folder}/adapter", f"{folder}/ids.safetensors", f"{folder}/logits.safetensors"]
        done = subprocess.run([sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True, check=True)
        reloaded = float((load_file(f"{folder}/logits.safetensors")["logits"] - trained).abs().max())
    decompositions = int(done.stdout.split()[-1])
    return {"start": start, "disabled": disabled, "reloaded": reloaded, "decompositions_at_reload": decompositions}


def main() -> None:
    """Measure every method and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", required=True)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    # Each weight is decomposed once for all methods of this package: what is measured is what they make of it.
    with tempfile.TemporaryDirectory() as folder, using(Store(Path(folder))):
        found = {
            f"milora: {name}": measure(
                given.model_name_or_path,
                lambda name=name: SpectralConfig(method=name, r=R, lora_dropout=0.05, target_modules="all-linear"),
                train_mode=True,
            )
            for name in METHODS
        }
    for init in ("pissa", "pissa_niter_16"):
        found[f"peft: {init}"] = measure(
            given.model_name_or_path,
            lambda init=init: LoraConfig(r=R, lora_alpha=R, init_lora_weights=init, target_modules="all-linear"),  # pyright: ignore
            train_mode=False,
        )
    record = {
        "command": "python " + shlex.join(sys.argv),
        "machine": {**hardware(), "platform": platform.machine()},
        "versions": versions(),
        "largest_logit_difference": found,
    }
    write_text(given.output, json.dumps(record, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

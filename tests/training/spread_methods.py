"""Every method, spread over the ranks that run this: the start, one step, and what is gathered of it.

accelerate launch ... cpu_ranks.py spread_methods.py MODEL OUT          writes OUT/spread.pt
"""

import os
import sys
import warnings
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from peft import get_peft_model
from transformers import AutoModelForCausalLM
from trl.trainer.sft_config import SFTConfig

from milora import MiloraError, SpectralConfig
from milora.methods import METHODS
from milora.models.spread import values_elsewhere
from milora.training.spread import whole_state

IDS = torch.arange(3, 35).view(2, 16)
SCATTERED = "svft random"
VARIANTS = {name: {"method": name} for name in METHODS} | {
    "milora with magnitude": {"method": "milora", "magnitude": True},
    "svft banded": {"method": "svft", "pattern": "banded", "d": 2},
    SCATTERED: {"method": "svft", "pattern": "random", "d": 1},
    "svf as published": {"method": "svf", "as_published": True},
}
ROWS = {"use_cpu": True, "bf16": False, "report_to": "none", "per_device_train_batch_size": 2}


def adapted(folder: str, settings: dict) -> torch.nn.Module:
    """The model with an adapter on three layers of each block."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    targets = ["q_proj", "v_proj", "down_proj"]
    return get_peft_model(model, SpectralConfig(r=4, target_modules=targets, task_type="CAUSAL_LM", **settings))


def step(model, optimizer, backward) -> torch.Tensor:
    """One step of SGD on the ids; returns the logits before it."""
    logits = model(input_ids=IDS).logits
    backward(torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()))
    optimizer.step()
    optimizer.zero_grad()
    return logits.detach()


def sgd(model) -> torch.optim.Optimizer:
    """As simple as it can be: a gradient that is wrong is a step that is."""
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=10.0)


def alone(folder: str, settings: dict) -> dict:
    """On a model that is not spread: the base's logits, those at the start, and the adapter after a step."""
    with torch.no_grad():
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(input_ids=IDS).logits
    model = adapted(folder, settings)
    start = step(model, sgd(model), torch.Tensor.backward)
    return {"base": base, "start": start, "state": {n: t for n, t in model.state_dict().items() if "spectral" in n}}


def spread(folder: str, settings: dict, hands_out: bool) -> dict:
    """The same on one that is."""
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = str(hands_out).lower()
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    # Trainers make their arguments before a model is read, and these set up the ranks, and ZeRO-3.
    arguments = SFTConfig(output_dir="unused", **ROWS)
    model = adapted(folder, settings)
    elsewhere = values_elsewhere()
    accelerator = Accelerator()
    if arguments.deepspeed_plugin is not None:
        accelerator.state.deepspeed_plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = 2
    model, optimizer = accelerator.prepare(model, sgd(model))
    start = step(model, optimizer, accelerator.backward)
    return {"start": start, "state": whole_state(accelerator.unwrap_model(model)), "elsewhere": elsewhere}


def refusal(folder: str) -> str:
    """What is said of positions that accelerate would not hand out."""
    try:
        spread(folder, VARIANTS[SCATTERED], hands_out=True)
    except MiloraError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    results = {n: spread(sys.argv[1], settings, n != SCATTERED) for n, settings in VARIANTS.items()}
    if "ACCELERATE_USE_FSDP" in os.environ:
        results["refusal"] = refusal(sys.argv[1])
    torch.save(results, Path(sys.argv[2]) / f"spread{os.environ['RANK']}.pt")

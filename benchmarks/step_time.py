"""Time and memory of a training step: ours, and PEFT's method that comes closest, in one process, alternating.

    python benchmarks/step_time.py --model_name_or_path M --output benchmarks/results/step_time.json

All linear layers, r = 32, no dropout, float32; a step is forward, loss, backward and AdamW on --batch sequences of
--length random tokens. A ratio is ours over theirs in the same round; its spread is over rounds. On a CPU times are the
process's own CPU seconds with one thread, on a GPU (--device cuda) wall-clock seconds between synchronisations. `dense
SVFT` is the forward of SVFT's authors: U (S + M) V^T rebuilt in every call. Memory: what the adapter adds (trained,
frozen), and what the forward keeps for the backward; on a GPU also the peak.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PsoftConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from milora import SpectralConfig
from milora.models.atomic import write_text
from milora.runs.provenance import hardware, versions

R = 32
WHERE: dict[str, Any] = {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}
# Ours, and what it is compared with.
PAIRS = [
    ("milora", "peft lora"),
    ("milora", "peft pissa"),
    ("pissa", "peft pissa"),
    ("random_components", "peft lora"),
    ("mica", "peft lora"),
    ("mica", "peft mica"),
    ("milora + magnitude", "peft dora"),
    ("mica + magnitude", "peft dora"),
    ("lora_xs", "peft lora"),
    ("lora_xs", "peft psoft"),
    ("svf", "peft lora"),
    ("svft plain", "peft lora"),
    ("svft plain", "dense SVFT"),
    ("svft banded, d = 8", "dense SVFT"),
    ("svft random, d = 8", "dense SVFT"),
]
OURS: dict[str, dict[str, Any]] = {
    **{m: {"method": m} for m in ("milora", "pissa", "random_components", "mica", "lora_xs", "svf")},
    **{f"{m} + magnitude": {"method": m, "magnitude": True} for m in ("milora", "mica")},
    "svft plain": {"method": "svft"},
    "svft banded, d = 8": {"method": "svft", "pattern": "banded", "d": 8},
    "svft random, d = 8": {"method": "svft", "pattern": "random", "d": 8},
}
PEFT: dict[str, Callable[[], Any]] = {
    "peft lora": lambda: LoraConfig(r=R, lora_alpha=R, **WHERE),
    "peft pissa": lambda: LoraConfig(r=R, lora_alpha=R, init_lora_weights="pissa_niter_4", **WHERE),
    "peft mica": lambda: LoraConfig(r=R, lora_alpha=R, init_lora_weights="mica", **WHERE),
    "peft dora": lambda: LoraConfig(r=R, lora_alpha=R, use_dora=True, **WHERE),
    "peft psoft": lambda: PsoftConfig(r=R, psoft_alpha=R, **WHERE),
}


class DenseSVFT(nn.Module):
    """SVFT as its authors' code computes it: W' = U (diag(S) + diag(M)) V^T in every forward pass."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        U, S, Vh = torch.linalg.svd(base.weight.detach(), full_matrices=False)
        self.bias = base.bias
        self.U, self.S, self.Vh = (nn.Parameter(x, requires_grad=False) for x in (U, S, Vh))
        self.M = nn.Parameter(torch.zeros_like(S))

    def forward(self, x: Tensor) -> Tensor:  # (..., in) -> (..., out)
        """W' x + b."""
        return F.linear(x, (self.U * (self.S + self.M)) @ self.Vh, self.bias)


def adapted(name: str, base: nn.Module) -> nn.Module:
    """The model of one way. All share the base's parameters, but for those whose start rewrites them."""
    shared = {} if name in ("peft pissa", "peft psoft") else {id(p): p for p in base.parameters()}
    model = copy.deepcopy(base, shared)
    if name == "base":
        return model
    if name in PEFT:
        return get_peft_model(model, PEFT[name]())  # pyright: ignore[reportArgumentType]
    if name in OURS:
        return get_peft_model(model, SpectralConfig(r=R, **WHERE, **OURS[name]))  # pyright: ignore[reportArgumentType]
    model.requires_grad_(False)
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and not path.endswith("lm_head"):
            parent, _, child = path.rpartition(".")
            setattr(model.get_submodule(parent), child, DenseSVFT(module))
    return model


class Way:
    """One adapted model and its step."""

    def __init__(self, name: str, base: nn.Module, ids: Tensor) -> None:
        self.name, self.ids, self.cuda = name, ids, ids.is_cuda
        self.model = adapted(name, base).train()
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4)
        own = {id(p) for p in base.parameters()}
        self.numbers = sum(p.numel() for p in self.trained)
        self.frozen = sum(p.numel() for p in self.model.parameters() if id(p) not in own and not p.requires_grad)
        self.times: list[float] = []
        self.peak = 0

    def loss(self) -> Tensor:
        """The next-token loss."""
        return self.model(input_ids=self.ids, labels=self.ids).loss

    def kept(self) -> int:
        """Bytes that the forward keeps for the backward, each storage once, parameters aside."""
        parameters = {p.untyped_storage().data_ptr() for p in self.model.parameters()}
        seen: dict[int, int] = {}

        def pack(x: Tensor) -> Tensor:
            storage = x.untyped_storage()
            if storage.data_ptr() not in parameters:
                seen[storage.data_ptr()] = storage.nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            loss = self.loss()
        total = sum(seen.values())
        del loss
        return total

    def step(self) -> None:
        """One step, timed."""
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter() if self.cuda else time.process_time()
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.cuda:
            torch.cuda.synchronize()
            self.peak = torch.cuda.max_memory_allocated()
        self.times.append((time.perf_counter() if self.cuda else time.process_time()) - start)


def spread(ratios: list[float]) -> dict[str, float]:
    """Median, least and largest."""
    return {
        "median": round(statistics.median(ratios), 3),
        "least": round(min(ratios), 3),
        "most": round(max(ratios), 3),
    }


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="*", help="names of ways; all by default")
    given = parser.parse_args()
    torch.set_num_threads(1)
    base = AutoModelForCausalLM.from_pretrained(given.model_name_or_path, dtype=torch.float32).to(given.device)
    base.config.use_cache = False
    ids = torch.randint(5, 40000, (given.batch, given.length), generator=torch.Generator().manual_seed(0))
    names = given.only or ["base", *PEFT, *OURS, "dense SVFT"]
    ways = {name: Way(name, base, ids.to(given.device)) for name in names if name != "base"}
    kept = {name: way.kept() for name, way in ways.items()}
    for round_ in range(given.rounds + 1):
        for way in ways.values():
            way.step()
        print(f"round {round_}", flush=True)
    times = {name: way.times[1:] for name, way in ways.items()}  # the first warms up
    record: dict[str, Any] = {
        "command": "python " + shlex.join(sys.argv),
        "machine": {**hardware(), "platform": platform.machine()},
        "versions": versions(),
        "tokens": [given.batch, given.length],
        "ratios": [
            {"ours": ours, "theirs": theirs,
             "time": spread([a / b for a, b in zip(times[ours], times[theirs], strict=True)]),
             "kept_for_backward": round(kept[ours] / kept[theirs], 3)}
            for ours, theirs in PAIRS if ours in ways and theirs in ways
        ],
        "memory": {
            name: {"trained_numbers": way.numbers, "frozen_numbers_added": way.frozen, "kept_for_backward": kept[name],
                   **({"peak": way.peak, "seconds": min(times[name])} if way.cuda else {})}
            for name, way in ways.items()
        },
    }  # fmt: skip
    write_text(given.output, json.dumps(record, indent=1) + "\n")
    for row in record["ratios"]:
        print(f"{row['ours']:20} / {row['theirs']:12} {row['time']}  kept {row['kept_for_backward']}")


if __name__ == "__main__":
    main()

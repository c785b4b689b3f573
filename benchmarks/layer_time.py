"""Time of one layer's training step by its shape and the number of tokens, in one process, alternating.

    python benchmarks/layer_time.py --output benchmarks/results/layer_time.json

float32, r = 32, no dropout, one thread; a step is forward, backward to the input, and AdamW. Each ratio is of CPU
seconds in the same round; its spread is over rounds. Products per token of an (n, n) layer, with the base's own 2 n^2
(forward, and backward to the input):

    LoRA           2 n^2 + 6 r n       milora    2 n^2 + 10 r n
    SVFT, plain    6 n^2               dense SVFT, rebuilt in every call    3 n^2 + 2 n^3 / T,  T tokens a step

so that milora nears LoRA as n grows, and SVFT-plain is three times as fast as the dense rebuild up to T = 2 n / 15.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
from pathlib import Path
from time import process_time
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from step_time import DenseSVFT, R, spread
from torch import nn

from milora import SpectralConfig
from milora.models.atomic import write_text
from milora.runs.provenance import hardware, versions

PAIRS = [("milora", "peft lora"), ("mica", "peft lora"), ("lora_xs", "peft lora"), ("svft plain", "dense SVFT")]


class One(nn.Module):
    """A model of one linear layer."""

    def __init__(self, out: int, in_: int) -> None:
        super().__init__()
        self.layer = nn.Linear(in_, out, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (T, in) -> (T, out)
        """W x."""
        return self.layer(x)


def adapted(name: str, out: int, in_: int) -> nn.Module:
    """The layer with one way's adapter."""
    torch.manual_seed(0)
    base = One(out, in_).requires_grad_(False)
    if name == "dense SVFT":
        base.layer = DenseSVFT(base.layer)  # pyright: ignore[reportAttributeAccessIssue]
        return base
    if name == "peft lora":
        config: Any = LoraConfig(r=R, lora_alpha=R, target_modules=["layer"])
    else:
        config = SpectralConfig(method=name.split()[0], r=R, target_modules=["layer"])
    return get_peft_model(base, config)  # pyright: ignore[reportArgumentType]


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, g: torch.Tensor) -> float:
    """CPU seconds of one step."""
    start = process_time()
    model(x).backward(g)
    optimizer.step()
    optimizer.zero_grad()
    return process_time() - start


def measure(out: int, in_: int, tokens: list[int], rounds: int) -> list[dict[str, Any]]:
    """Ratios of one shape, a row for each pair and number of tokens."""
    models = {name: adapted(name, out, in_) for name in dict.fromkeys(name for pair in PAIRS for name in pair)}
    optimizers = {
        name: torch.optim.AdamW([p for p in model.parameters() if p.requires_grad]) for name, model in models.items()
    }
    rows: list[dict[str, Any]] = []
    for T in tokens:
        generator = torch.Generator().manual_seed(T)
        x = torch.randn(T, in_, generator=generator).requires_grad_()
        g = torch.randn(T, out, generator=generator)
        times: dict[str, list[float]] = {name: [] for name in models}
        for _ in range(rounds + 1):
            for name, model in models.items():
                times[name].append(step(model, optimizers[name], x, g))
        for ours, theirs in PAIRS:
            ratios = [a / b for a, b in zip(times[ours][1:], times[theirs][1:], strict=True)]  # the first warms up
            rows.append({"shape": [out, in_], "tokens": T, "ours": ours, "theirs": theirs, "time": spread(ratios)})
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--shapes", nargs="+", default=["576x576", "1536x576", "576x1536", "2048x2048", "4096x4096"])
    parser.add_argument("--tokens", nargs="+", type=int, default=[32, 64, 128, 256, 512])
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for shape in given.shapes for row in measure(*map(int, shape.split("x")), given.tokens, given.rounds)]
    record = {
        "command": "python " + shlex.join(sys.argv),
        "machine": {**hardware(), "platform": platform.machine()},
        "versions": versions(),
        "ratios": rows,
    }
    write_text(given.output, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Starting a model from the store, and several processes that start it at once on one empty store.

    python benchmarks/shared_store.py --model_name_or_path M --output benchmarks/results/shared_store.json

All linear layers, milora, r = 32, float32, one thread a process. From the store: the time of `get_peft_model` against
that of PEFT's `mica` and `pissa`, alternating in one process. Several processes: how many matrices each computed, and
the time until the last was done against that of one process alone, wall-clock: the machine must be otherwise idle.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from milora import SpectralConfig
from milora.decompositions import Store, using
from milora.models.atomic import write_text
from milora.runs.provenance import hardware, versions

R = 32
CHILD = """
import sys, time, torch
from pathlib import Path
torch.set_num_threads(1)
from peft import get_peft_model
from transformers import AutoModelForCausalLM
from milora import SpectralConfig
from milora.decompositions import Part, Store, using
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
count, compute = [0], Part.compute
def counted(self, *arguments):
    count[0] += 1
    return compute(self, *arguments)
Part.compute = counted
print("ready", flush=True)
sys.stdin.readline()
start = time.monotonic()
with using(Store(Path(sys.argv[2]))):
    get_peft_model(model, SpectralConfig(method="milora", r=32, target_modules="all-linear"))
print(count[0], time.monotonic() - start)
"""


def start(model_name: str, config: Any) -> float:
    """CPU seconds of one `get_peft_model`."""
    model = AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.float32)
    before = time.process_time()
    get_peft_model(model, config)
    return time.process_time() - before


def from_the_store(model_name: str, rounds: int) -> dict[str, Any]:
    """Ratios of PEFT's time to ours from a warm store."""
    theirs = {i: LoraConfig(r=R, lora_alpha=R, init_lora_weights=i, target_modules="all-linear") for i in ("mica", "pissa")}  # pyright: ignore # fmt: skip # noqa: E501
    ours = SpectralConfig(method="milora", r=R, target_modules="all-linear")
    ratios: dict[str, list[float]] = {name: [] for name in theirs}
    with tempfile.TemporaryDirectory() as folder, using(Store(Path(folder))):
        start(model_name, ours)
        for _ in range(rounds):
            own = start(model_name, ours)
            for name, config in theirs.items():
                ratios[name].append(start(model_name, config) / own)
    return {
        f"peft {name}": {"median": round(statistics.median(r), 1), "least": round(min(r), 1), "most": round(max(r), 1)}
        for name, r in ratios.items()
    }


def together(model_name: str, processes: int) -> tuple[list[int], float]:
    """Matrices that each of the processes computed, and the seconds until the last was done."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", CHILD, model_name, folder]
        children = [
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            for _ in range(processes)
        ]
        for child in children:
            assert child.stdout is not None and child.stdout.readline() == "ready\n"
        for child in children:
            assert child.stdin is not None
            child.stdin.write("\n")
            child.stdin.flush()
        said = [child.communicate()[0].split() for child in children]
    return [int(count) for count, _ in said], max(float(seconds) for _, seconds in said)


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    shares, ratios = [], []
    for _ in range(given.rounds):
        _, alone = together(given.model_name_or_path, 1)
        counts, both = together(given.model_name_or_path, 2)
        shares.append(counts)
        ratios.append(round(alone / both, 2))
    record = {
        "command": "python " + shlex.join(sys.argv),
        "machine": {**hardware(), "platform": platform.machine()},
        "versions": versions(),
        "time_of_peft_over_ours_from_the_store": from_the_store(given.model_name_or_path, given.rounds),
        "two_processes_on_one_store": {"computed_by_each": shares, "time_of_one_alone_over_two": ratios},
    }
    write_text(given.output, json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()

"""Ours and the usual ways to the bottom and the top r singular triplets, side by side: ratios of time, and energy.

    python benchmarks/decompose.py --output benchmarks/results/decompose.json [--shapes 576x576 4096x4096 ...]
    python benchmarks/decompose.py --output benchmarks/results/decompose_model.json --model_name_or_path M

The first form takes random matrices of each shape: Gaussian ones, whose two edges are as flat as they come, and heavy
ones, Gaussian plus 256 directions whose singular values fall as j^-1/2 from 20 times the bulk's edge. The second starts
whole models: ours, and PEFT's `mica`, `pissa` and `pissa_niter_16`. In one process, alternating, one thread unless
--threads says otherwise; on a CPU times are the process's own CPU seconds (wall-clock seconds with several threads), on
a GPU (--device cuda) wall-clock seconds between synchronisations. A ratio is another way's time over ours in the same
round; its spread is over rounds. Ours includes every default check. Energy: the relative excess of the captured energy
(bottom), or what is missing of it (top), against float64 Gram + eigh.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import scipy.linalg
import torch
from peft import LoraConfig, get_peft_model
from threadpoolctl import threadpool_limits
from torch import Tensor
from transformers import AutoModelForCausalLM

from milora import SpectralConfig
from milora.decompositions import using
from milora.linalg import SVD, bottom, top
from milora.models.atomic import write_text
from milora.runs.provenance import hardware, versions

SHAPES = ["576x576", "1536x576", "576x1536", "1024x4096", "2048x2048", "4096x4096", "11008x4096", "4096x11008"]
RANKS = [16, 64, 128]
KINDS = ["gaussian", "heavy"]
HEAVY = 256  # directions above the bulk of a heavy matrix


def matrix(kind: str, m: int, n: int, device: str) -> Tensor:  # (m, n)
    """A weight to decompose, drawn with a seed."""
    generator = torch.Generator().manual_seed(1)
    W = torch.randn(m, n, generator=generator)
    if kind == "heavy":
        # Random directions have a length of about sqrt(m) and sqrt(n); the bulk ends at sqrt(m) + sqrt(n).
        fall = torch.arange(1, HEAVY + 1) ** -0.5 * 20 * (m**-0.5 + n**-0.5)
        W += (torch.randn(m, HEAVY, generator=generator) * fall) @ torch.randn(HEAVY, n, generator=generator)
    return (W * 0.02).to(device)


class Clock:
    """Seconds that a function takes: of the process with one thread on a CPU, else of the wall."""

    def __init__(self, device: str) -> None:
        self.cuda = device.startswith("cuda")

    def now(self) -> float:
        """The time in seconds."""
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter() if self.cuda or torch.get_num_threads() > 1 else time.process_time()

    def __call__(self, function: Callable[[], Any]) -> tuple[float, Any]:
        """The time that a call takes, and its result."""
        start = self.now()
        result = function()
        return self.now() - start, result


def gram_eigh(W: Tensor, subset: tuple[int, int] | None = None) -> Tensor:  # (m, n) -> (n, r) or (m, r)
    """Right (left, for a wide W) singular vectors by float64 Gram + eigh, smallest first; all, or scipy's subset."""
    D = (W if W.shape[0] >= W.shape[1] else W.T).to(torch.float64)
    G = D.T @ D
    if subset is None:
        return torch.linalg.eigh(G).eigenvectors
    vectors = scipy.linalg.eigh(G.numpy(), subset_by_index=list(subset), overwrite_a=True, check_finite=False)[1]
    return torch.from_numpy(vectors)


def energy(W: Tensor, V: Tensor) -> float:  # (m, n), (n, r) or (m, r)
    """||W V||_F^2 in float64, for vectors of W's smaller side."""
    D = (W if W.shape[0] >= W.shape[1] else W.T).to(torch.float64)
    return float((D @ V.to(torch.float64)).square().sum())


def small_side(W: Tensor, svd: SVD) -> Tensor:  # (n, r) or (m, r)
    """The vectors of W's smaller side."""
    return svd.Vh.T if W.shape[0] >= W.shape[1] else svd.U


def one_shape(kind: str, m: int, n: int, ranks: list[int], rounds: int, device: str) -> list[dict[str, Any]]:
    """All ways on one matrix."""
    W, clock, k = matrix(kind, m, n, device), Clock(device), min(m, n)
    ranks = [r for r in ranks if r <= k]
    times: dict[str, list[float]] = {}
    found: dict[str, Any] = {}
    for _ in range(rounds):
        ways: dict[str, Callable[[], Any]] = {
            "torch.linalg.svd": lambda: torch.linalg.svd(W, full_matrices=False),
            "float64 Gram + eigh": lambda: gram_eigh(W),
        }
        for r in ranks:
            ways[f"bottom {r}"] = lambda r=r: bottom(W, r)
            ways[f"top {r}"] = lambda r=r: top(W, r)
            for niter in (4, 16):
                ways[f"svd_lowrank {r} niter {niter}"] = lambda r=r, niter=niter: torch.svd_lowrank(W, r, niter=niter)
            if device == "cpu":
                ways[f"scipy subset {r}"] = lambda r=r: gram_eigh(W, (0, r - 1))
        for name, way in ways.items():
            seconds, found[name] = clock(way)
            times.setdefault(name, []).append(seconds)
    return [row(W, kind, end, r, times, found, device) for r in ranks for end in ("bottom", "top")]


def row(
    W: Tensor, kind: str, end: str, r: int, times: dict[str, list[float]], found: dict[str, Any], device: str
) -> dict[str, Any]:
    """One end and rank: ratios to ours, and the energy."""
    ours: SVD = found[f"{end} {r}"]
    all_vectors = found["float64 Gram + eigh"]
    exact = energy(W, all_vectors[:, :r] if end == "bottom" else all_vectors[:, -r:])
    assert ours.certificate is not None
    ways = ["torch.linalg.svd", "float64 Gram + eigh"]
    ways += [f"scipy subset {r}"] if end == "bottom" and device == "cpu" else []
    ways += [f"svd_lowrank {r} niter {niter}" for niter in (4, 16)] if end == "top" else []
    record: dict[str, Any] = {"matrix": kind, "shape": list(W.shape), "part": f"{end} {r}"}
    record["ratios"] = {w: spread([a / b for a, b in zip(times[w], times[f"{end} {r}"], strict=True)]) for w in ways}
    record["energy_error"] = abs(energy(W, small_side(W, ours)) / exact - 1)
    if end == "top":
        for niter in (4, 16):
            U, _, V = found[f"svd_lowrank {r} niter {niter}"]
            missed = 1 - energy(W, V if W.shape[0] >= W.shape[1] else U) / exact
            record[f"svd_lowrank_{niter}_energy_error"] = missed
    record["certificate"] = ours.certificate.as_dict()
    if device != "cpu":
        record["seconds"] = {w: min(t) for w, t in times.items()}
    return record


def spread(ratios: list[float]) -> dict[str, float]:
    """Median, least and largest."""
    return {
        "median": round(statistics.median(ratios), 2),
        "least": round(min(ratios), 2),
        "most": round(max(ratios), 2),
    }


def whole_model(name: str, rounds: int, device: str, r: int = 32) -> list[dict[str, Any]]:
    """Starts of a whole model, all linear layers: ours without a store, and PEFT's."""
    clock = Clock(device)
    configs: dict[str, Callable[[], Any]] = {
        **{f"milora: {m}": lambda m=m: SpectralConfig(method=m, r=r, target_modules="all-linear")
           for m in ("milora", "mica", "pissa")},
        **{f"peft: {i}": lambda i=i: LoraConfig(r=r, lora_alpha=r, init_lora_weights=i, target_modules="all-linear")
           for i in ("mica", "pissa", "pissa_niter_16")},
    }  # fmt: skip
    times: dict[str, list[float]] = {}
    for _ in range(rounds):
        for way, config in configs.items():
            model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).to(device)
            with using(None):
                times.setdefault(way, []).append(
                    clock(lambda model=model, config=config: get_peft_model(model, config()))[0]
                )
    return [
        {"model": Path(name).name, "r": r, "ours": ours, "theirs": theirs,
         "ratio": spread([a / b for a, b in zip(times[theirs], times[ours], strict=True)])}
        for ours in configs if ours.startswith("milora") for theirs in configs if theirs.startswith("peft")
    ]  # fmt: skip


def main() -> None:
    """Measure and write the record; each finished matrix is printed and kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--shapes", nargs="+", default=SHAPES)
    parser.add_argument("--ranks", nargs="+", type=int, default=RANKS)
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model_name_or_path")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    record: dict[str, Any] = {
        "command": "python " + shlex.join(sys.argv),
        "machine": {**hardware(), "platform": platform.machine()},
        "versions": versions(),
        "threads": given.threads,
        "rounds": given.rounds,
        "results": [],
    }
    with threadpool_limits(given.threads):
        if given.model_name_or_path:
            record["results"] = whole_model(given.model_name_or_path, given.rounds, given.device)
        else:
            for shape in given.shapes:
                m, n = (int(side) for side in shape.split("x"))
                for kind in given.kinds:
                    rows = one_shape(kind, m, n, given.ranks, given.rounds, given.device)
                    record["results"] += rows
                    print("\n".join(json.dumps(r) for r in rows), flush=True)
                    write_text(given.output, json.dumps(record, indent=1) + "\n")
    write_text(given.output, json.dumps(record, indent=1) + "\n")
    print(json.dumps(record["results"], indent=1))


if __name__ == "__main__":
    main()

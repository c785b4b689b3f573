"""`milora decompose` on a checkpoint with Llama-2-7B's shapes: time, memory, and the worst values of the certificates.

    python benchmarks/seven_b.py --layers 2 --procs 2 --output benchmarks/results/seven_b.json

Writes a checkpoint of so many layers, a layer a file, in bfloat16, and decomposes q, k, v, up and down at rank 64 in a
process of its own with an empty store, and once more from the store it filled. The weights are made up: normal numbers
with columns of uneven size, and a few large directions with a falling spectrum, so that the singular values are
heavy-tailed as those of real weights are. With fewer than 32 layers the time of 32 is extrapolated, and the record says
so: all layers have the same shapes, so that the time spent on matrices grows with their number and the rest stays.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from milora.models.atomic import write_text
from milora.runs.provenance import commit, hardware, versions

LAYERS = 32
TARGETS = "q_proj,k_proj,v_proj,up_proj,down_proj"
LARGE = 48  # directions that stand out of the bulk


def structured(out: int, in_: int, generator: torch.Generator) -> torch.Tensor:  # (out, in), bfloat16
    """A heavy-tailed weight, made by products alone: W = G diag(d) + A diag(s) B, s falling as a power."""

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    W = normal(out, in_)
    W *= (0.3 * normal(in_)).exp() / in_**0.5
    r = min(LARGE, out, in_)
    s = 4.0 * torch.arange(1, r + 1) ** -0.7  # (r,)
    W.addmm_(normal(out, r) * (s / out**0.5), normal(r, in_) / in_**0.5)
    return W.to(torch.bfloat16)


def write_checkpoint(folder: Path, layers: int, hidden: int, intermediate: int) -> int:
    """Write config, index and one file a layer; at any time one layer is in memory. Returns the bytes written."""
    shapes = {
        **{f"self_attn.{leaf}_proj": (hidden, hidden) for leaf in "qkvo"},
        "mlp.gate_proj": (intermediate, hidden),
        "mlp.up_proj": (intermediate, hidden),
        "mlp.down_proj": (hidden, intermediate),
    }
    index: dict[str, str] = {}
    for i in range(layers):
        generator = torch.Generator().manual_seed(i)
        file = f"model-{i + 1:05}-of-{layers:05}.safetensors"
        names = {f"model.layers.{i}.{leaf}.weight": shape for leaf, shape in shapes.items()}
        save_file({n: structured(*shape, generator) for n, shape in names.items()}, folder / file, {"format": "pt"})
        index |= dict.fromkeys(names, file)
    heads = max(1, hidden // 128)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
        "intermediate_size": intermediate, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": heads, "vocab_size": 32000, "dtype": "bfloat16",
    }  # fmt: skip
    write_text(folder / "config.json", json.dumps(config))
    write_text(folder / "model.safetensors.index.json", json.dumps({"metadata": {}, "weight_map": index}))
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def decompose(folder: Path, cache: str, given: argparse.Namespace) -> tuple[dict[str, Any], float]:
    """Run the command with a store of its own; its record, and the seconds from its start to its end."""
    arguments = [
        str(folder), "--rank", str(given.rank), "--part", given.part, "--targets", given.targets, "--procs",
        str(given.procs),
    ]  # fmt: skip
    arguments += ["--device", given.device] if given.device else []
    arguments += ["--strict"] if given.strict else []
    environment = {**os.environ, "MILORA_CACHE": cache, "MILORA_STORE": "on", "MILORA_CACHE_SIZE": "1TB"}
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "milora.cli", "decompose", *arguments, "--json"],
        env=environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    if done.returncode != 0:
        raise SystemExit(f"milora decompose ended with exit code {done.returncode}: {done.stdout}")
    return json.loads(done.stdout), seconds


def extrapolated(found: dict[str, Any], layers: int) -> float:
    """Seconds for all 32 layers: the time of one process on matrices scaled up, what is left of the call as it is."""
    on_matrices = found["busy_seconds"] / found["processes"]
    return found["seconds"] - on_matrices + on_matrices * LAYERS / layers


def main() -> None:
    """Write the checkpoint, decompose it, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--intermediate", type=int, default=11008)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--part", default="bottom")
    parser.add_argument("--targets", default=TARGETS)
    parser.add_argument("--procs", type=int, default=1)
    parser.add_argument("--device", help="cpu or cuda")
    parser.add_argument("--strict", action="store_true")
    parser.add_argument("--folder", type=Path, help="where the checkpoint and the store lie meanwhile")
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as room:
        model = Path(room, "model")
        model.mkdir()
        started = time.perf_counter()
        size = write_checkpoint(model, given.layers, given.hidden, given.intermediate)
        writing = time.perf_counter() - started
        found, whole = decompose(model, f"{room}/cache", given)
        again, whole_again = decompose(model, f"{room}/cache", given)
    for record in (found, again):
        for private in ("model", "store"):  # paths that are gone
            record.pop(private)
    seven_b = (given.hidden, given.intermediate) == (4096, 11008)
    record = {
        "command": "python " + shlex.join(sys.argv),
        "machine": {**hardware(), "platform": platform.machine()},
        "versions": versions(),
        "commit": commit(),
        "shapes": {"layers": given.layers, "hidden": given.hidden, "intermediate": given.intermediate},
        "weights": "made up: normal numbers with uneven columns and a few large directions, bfloat16",
        "checkpoint_bytes": size,
        "writing_the_checkpoint_seconds": writing,
        "from_start_to_end_seconds": whole,
        "decompose": found,
        "again_from_the_store": {"from_start_to_end_seconds": whole_again, "decompose": again},
        "extrapolated": seven_b and given.layers != LAYERS,
        "extrapolated_32_layers_seconds": extrapolated(found, given.layers) if seven_b else None,
    }
    write_text(given.output, json.dumps(record, indent=1) + "\n")
    print(json.dumps({k: record[k] for k in ("decompose", "extrapolated", "extrapolated_32_layers_seconds")}, indent=1))


if __name__ == "__main__":
    main()

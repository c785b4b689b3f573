"""Runs `milora`, or another script, on CPU ranks as accelerate would run it on GPUs, and notes what each rank does.

accelerate has FSDP on accelerators alone, and on a CPU makes DDP of it without a word. Here it is told that gloo
between CPU ranks is what NCCL is between GPUs; all the rest is what a user's command runs. DDP and DeepSpeed need no
such thing.

    accelerate launch ... cpu_ranks.py train recipe.yaml          MILORA_TEST_NOTES: the folder of the notes
"""

import hashlib
import json
import os
import runpy
import sys
from pathlib import Path

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType

IDS = torch.arange(3, 35).view(2, 16)
NOTES = Path(os.environ["MILORA_TEST_NOTES"]) / f"rank{os.environ.get('RANK', '0')}.jsonl"


def note(**record) -> None:
    with NOTES.open("a") as file:
        file.write(json.dumps(record) + "\n")


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()


def join() -> None:
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    torch.distributed.init_process_group("gloo")
    PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)


def watch() -> None:
    """Note what is decomposed, the factors as training begins, and the logits as it ends."""
    from milora.adapters import model as adapters_model
    from milora.decompositions import Part
    from milora.models.spread import values_elsewhere
    from milora.training.progress import MetricsWriter
    from milora.training.spread import whole

    compute, all_factors = Part.compute, adapters_model.all_factors

    def noted(self, W, *args):
        note(computed=digest(W.float()), on=str(W.device))
        return compute(self, W, *args)

    def began(targets, *args):
        parts = [w.ds_numel if hasattr(w, "ds_numel") else None for t in targets.values() for w in t.parameters()]
        note(targets=len(targets), elsewhere=values_elsewhere(), zero3=sum(n is not None for n in parts))
        return all_factors(targets, *args)

    def on_train_begin(self, args, state, control, model=None, **_):
        factors = {n: whole(p) for n, p in model.state_dict(keep_vars=True).items() if "_L0" in n or "_R0" in n}
        note(factors={n: digest(p) for n, p in factors.items()})

    def on_train_end(self, args, state, control, model=None, **_):
        model.eval()
        with torch.no_grad():
            logits = model(input_ids=IDS).logits
        torch.save(logits.float(), NOTES.with_suffix(".pt"))

    Part.compute, adapters_model.all_factors = noted, began
    MetricsWriter.on_train_begin, MetricsWriter.on_train_end = on_train_begin, on_train_end


def main() -> int:
    if "ACCELERATE_USE_FSDP" in os.environ:
        join()
    if sys.argv[1].endswith(".py"):
        sys.argv = sys.argv[1:]
        runpy.run_path(sys.argv[0], run_name="__main__")
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        return 0
    watch()
    from milora.cli.app import main as milora

    return milora()


if __name__ == "__main__":
    sys.exit(main())

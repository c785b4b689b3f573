"""Fill a store with the decompositions of a list of weights, as one process among several.

python fill.py STORE LOG SECONDS SEED COUNT

Each computation appends the weight's name to LOG when it begins and takes SECONDS longer than it would; each result is
announced on stdout.
"""

import sys
import time
from pathlib import Path


def weights(seed: int, count: int):
    import torch

    generator = torch.Generator().manual_seed(seed)
    return {f"w{i}": torch.randn(48, 32, generator=generator) for i in range(count)}


def main(folder: str, log: str, seconds: str, seed: str, count: str) -> None:
    from milora.decompositions import Part, Store, shared_out

    store = Store(Path(folder))
    there = weights(int(seed), int(count))
    names = {w.data_ptr(): n for n, w in there.items()}
    compute = Part.compute

    def logged(self, W, strict=False):
        with open(log, "a") as file:
            file.write(names[W.data_ptr()] + "\n")
        time.sleep(float(seconds))
        return compute(self, W, strict)

    Part.compute = logged

    def work(name, *, wait):
        return store.compute(there[name], Part.bottom(4), name=name, wait=wait)

    print("ready", flush=True)
    sys.stdin.readline()
    for name, svd in shared_out(there, work):
        print(name, float(svd.S[0]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Decompose the weights of a checkpoint into the store, longest first, one weight in memory at a time.

Any number of workers go through the same list. Each begins with its own share of it and then helps with what is left;
what another worker is at is held by the store's lock, so that nothing is computed twice.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from milora.decompositions.claims import Busy, shared_out
from milora.decompositions.ledger import Ledger
from milora.decompositions.part import Part
from milora.decompositions.store import Store
from milora.errors import MiloraError
from milora.models.digest import Digest, weight_digest
from milora.models.weights import LinearWeight


@dataclass
class Job:
    """What all workers of one call share; it can be sent to another process.

    Attributes:
        weights: what is decomposed.
        parts: which parts of each.
        store: where they go.
        strict: only with a strict certificate.
        ledger: where the workers say what they have done.
    """

    weights: Sequence[LinearWeight]
    parts: tuple[Part, ...]
    store: Store
    strict: bool
    ledger: Ledger


@dataclass
class Worker:
    """One process's part in a job.

    Attributes:
        job: the job.
        index, count: which of how many workers it is.
        device: where it computes.
        keep_on: asked before each weight; False ends the work.
    """

    job: Job
    index: int = 0
    count: int = 1
    device: str = "cpu"
    keep_on: Callable[[], bool] = lambda: True
    _memory_before: int = 0
    _computed: dict[tuple[int, str], dict[str, Any]] = field(default_factory=dict[tuple[int, str], dict[str, Any]])

    def run(self) -> Iterator[int]:
        """Work until every weight is done, by whomever; yields each one's index in `job.weights`."""
        self._memory_before = peak_memory()
        for item, _ in shared_out(order(self.job.weights, self.index, self.count), self._work):
            yield item

    def _work(self, item: int, wait: bool) -> None:
        job = self.job
        if job.ledger.read(item) is not None or not self.keep_on():
            return
        started = time.perf_counter()
        record: dict[str, Any] = {"name": job.weights[item].name, "parts": [], "key": None, "error": None}
        try:
            record |= self._decompose(item, wait)
        except Busy:
            raise
        except Exception as error:  # one weight that fails is named, and the others go on
            wrong_call = isinstance(error, MiloraError)
            line = " ".join(str(error).split())
            record |= {
                "error": line if wrong_call else f"{type(error).__name__}: {line}",
                "wrong_call": wrong_call,
            }
        # While this worker waited, another one may have recorded the weight as its own.
        if wait and job.ledger.read(item) is not None:
            return
        job.ledger.write(
            item,
            record
            | {
                "computed": any(not part["found"] for part in record["parts"]),
                "seconds": time.perf_counter() - started,
                "worker": self.index,
                "memory_before_bytes": self._memory_before,
                "peak_memory_bytes": peak_memory(),
                "peak_gpu_memory_bytes": torch.cuda.max_memory_allocated(self.device) if "cuda" in self.device else 0,
            },
        )

    def _decompose(self, item: int, wait: bool) -> dict[str, Any]:
        W = self.job.weights[item].load()  # (out, in)
        digest = weight_digest(W)
        W = W.to(self.device)
        return {"key": digest.key, "parts": [self._part(item, W, part, digest, wait) for part in self.job.parts]}

    def _part(self, item: int, W: torch.Tensor, part: Part, digest: Digest, wait: bool) -> dict[str, Any]:
        job = self.job
        if (item, part.name) in self._computed:  # before another part of the same weight was held elsewhere
            return self._computed[item, part.name]
        found = job.store.holds(digest.key, part, W.dtype, job.strict)
        svd = job.store.compute(
            W, part, name=job.weights[item].name, strict=job.strict, wait=wait, digest=digest
        )  # fmt: skip
        if not job.store.holds(digest.key, part, W.dtype, job.strict):
            raise MiloraError(f"store: {job.store.folder} could not keep it (a full disk, or no right to write)")
        certificate = svd.certificate.as_dict() if svd.certificate is not None else None
        done = {"part": part.kind, "found": found, "certificate": certificate}
        if not found:
            self._computed[item, part.name] = done
        return done


def order(weights: Sequence[LinearWeight], index: int = 0, count: int = 1) -> list[int]:
    """Every item in the order in which a worker comes to it.

    Its own share first, longest first: each `count`-th of the list by cost. Then those of the others from their ends,
    which they reach last.
    """
    longest_first = sorted(range(len(weights)), key=lambda i: -cost(weights[i]))
    own = longest_first[index::count]
    others = [i for position, i in enumerate(longest_first) if position % count != index]
    return own + others[::-1]


def cost(weight: LinearWeight) -> float:
    """What a decomposition of an m x n matrix costs, up to a factor: m n min(m, n)."""
    m, n = weight.shape
    return float(m * n * min(m, n))


def peak_memory() -> int:
    """The most memory that this process has held, in bytes.

    Linux's own count is of this program alone; that of getrusage begins with what the parent process held.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

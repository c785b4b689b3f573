"""Who does the work of a fill: this process, several that it starts, or the ranks of torchrun or accelerate.

Workers share the store and the call's ledger, and nothing else. One that dies loses only the weight it was at, and the
others do that too.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from milora.decompositions.fill import Job, Worker
from milora.decompositions.fill_result import Filled, Progress, add_up, progress_of
from milora.decompositions.ledger import Ledger
from milora.decompositions.part import Part
from milora.decompositions.store import Store
from milora.errors import MiloraError
from milora.models.cache import cache_folder
from milora.models.weights import LinearWeight

_LOOK = 0.2  # seconds between two looks at what the workers have done
_START = 60.0  # seconds within which the ranks of one call begin
_DAY = 86400.0

Show = Callable[[Progress], None]


@dataclass(frozen=True)
class Rank:
    """This process's place among those that torchrun or accelerate started."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1

    @classmethod
    def of_environment(cls) -> Rank:
        """From RANK, LOCAL_RANK and WORLD_SIZE; the only one where they are not set.

        Raises:
            MiloraError: one of them is no number, or RANK is not below WORLD_SIZE.
        """
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
        given = [os.environ.get(name, default) for name, default in zip(names, "001", strict=True)]
        if not all(text.isdigit() for text in given) or int(given[0]) >= int(given[2]):
            raise MiloraError(
                f"{', '.join(names)}: got {', '.join(given)}, allowed whole numbers, RANK below WORLD_SIZE"
            )
        return cls(*map(int, given))


def fill(
    weights: Sequence[LinearWeight],
    parts: tuple[Part, ...],
    store: Store,
    *,
    device: str = "cpu",
    procs: int = 1,
    strict: bool = False,
    show: Show | None = None,
) -> Filled | None:
    """Decompose weights into a store. What lies there already is done; a call that was stopped goes on.

    Args:
        weights: of a checkpoint.
        parts: which parts of each.
        store: where they go.
        device: "cpu", or "cuda" for one GPU a process.
        procs: processes on this machine; each has its share of the cores. Under torchrun each rank is one.
        strict: only with strict certificates.
        show: told how far it is.

    Returns:
        What was done; None in a rank that is not the first.

    Raises:
        MiloraError: no weights, procs below 1, or above 1 under torchrun.
    """
    rank = Rank.of_environment()
    if procs < 1:
        raise MiloraError(f"procs: got {procs}, allowed 1 or more")
    if procs > 1 and rank.world_size > 1:
        raise MiloraError(f"procs: got {procs} under WORLD_SIZE={rank.world_size}, allowed 1: each rank is a process")
    if not weights:
        raise MiloraError("weights: got none, allowed at least one")
    started = time.perf_counter()
    if rank.world_size > 1:
        job = Job(weights, parts, store, strict, _shared_ledger(rank, weights, parts, store, strict))
        show = show if rank.rank == 0 else None
        _work_here(job, rank.rank, rank.world_size, _device(device, rank.local_rank), show, started)
        return add_up(job, time.perf_counter() - started) if rank.rank == 0 else None
    with tempfile.TemporaryDirectory(prefix="milora-") as folder:
        job = Job(weights, parts, store, strict, Ledger(Path(folder)))
        lost: list[str] = []
        procs = min(procs, len(weights))
        if procs == 1:
            _work_here(job, 0, 1, _device(device, 0), show, started)
        else:
            lost = _start_and_watch(job, procs, device, show, started)
        return add_up(job, time.perf_counter() - started, lost)


def _work_here(job: Job, index: int, count: int, device: str, show: Show | None, started: float) -> None:
    for _ in Worker(job, index, count, device).run():
        if show is not None:
            show(progress_of(job, time.perf_counter() - started))


def _start_and_watch(job: Job, procs: int, device: str, show: Show | None, started: float) -> list[str]:
    """Run workers in processes of their own until all have ended; what became of those that ended early."""
    context = multiprocessing.get_context("spawn")
    threads = max(1, len(os.sched_getaffinity(0)) // procs)
    workers = [
        context.Process(target=_process, args=(job, i, procs, _device(device, i), threads), daemon=True)
        for i in range(procs)
    ]
    try:
        for worker in workers:
            worker.start()
        while any(worker.is_alive() for worker in workers):
            if show is not None:
                show(progress_of(job, time.perf_counter() - started))
            time.sleep(_LOOK)
    finally:
        for worker in workers:
            if worker.is_alive():
                worker.terminate()
            worker.join()
    if show is not None:
        show(progress_of(job, time.perf_counter() - started))
    return [_ended(i, worker.exitcode) for i, worker in enumerate(workers) if worker.exitcode != 0]


def _ended(index: int, code: int | None) -> str:
    if code is not None and code < 0:
        return f"worker {index} was killed ({signal.Signals(-code).name})"
    return f"worker {index} ended with exit code {code}"


def _process(job: Job, index: int, count: int, device: str, threads: int) -> None:
    # The keyboard's interrupt goes to all processes; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    parent: Any = multiprocessing.parent_process()
    for _ in Worker(job, index, count, device, keep_on=parent.is_alive).run():
        pass


def _device(device: str, index: int) -> str:
    return f"cuda:{index % torch.cuda.device_count()}" if device == "cuda" else device


def _shared_ledger(
    rank: Rank, weights: Sequence[LinearWeight], parts: tuple[Part, ...], store: Store, strict: bool
) -> Ledger:
    """The ledger that all ranks of one call find without talking: named by how and for what they were started."""
    launch = [os.environ.get(name, "") for name in ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")]
    files = {str(w.stored.file): w.stored.file.stat().st_mtime_ns for w in weights}
    asked = [[w.name, w.stored.key] for w in weights], [p.name for p in parts], str(store.folder), strict
    named = json.dumps([launch, rank.world_size, files, asked])
    folder = cache_folder() / "ledgers" / hashlib.sha256(named.encode()).hexdigest()[:16]
    if rank.rank == 0:
        _forget_old(folder.parent)
    return Ledger(folder, since=time.time() - _START)


def _forget_old(folder: Path) -> None:
    for file in folder.glob("*/*.json"):
        try:
            if file.stat().st_mtime < time.time() - _DAY:
                file.unlink()
        except OSError:
            continue

"""What the workers of a fill have done, added up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from milora.decompositions.fill import Job, cost


@dataclass(frozen=True)
class Progress:
    """How far a fill has come.

    Attributes:
        done, total: weights.
        share: of the arithmetic, 0 to 1.
        per_second: weights, since the beginning.
        worst: the largest error that a certificate states.
    """

    done: int
    total: int
    share: float
    per_second: float
    worst: float | None


@dataclass(frozen=True)
class Filled:
    """What a fill has done.

    Attributes:
        matrices: how many there were.
        computed, found: weights of which a part was computed, and those that lay in the store with all their parts.
        failed: name and reason of those that could not be decomposed.
        wrong_call: whether each of these reasons is the caller's to mend.
        unfinished: the names of those that nobody finished.
        removed: how many the store's limit has removed again.
        lost_workers: what became of workers that ended early.
        seconds, matrices_per_second: of the whole call, the start of its processes included.
        busy_seconds: the time spent on matrices, from reading to keeping, summed over the processes.
        algorithms: how often each was used, over all parts.
        refused: how often an algorithm's result failed its check and another one was taken.
        worst: the worst values of the certificates: residual is the smaller one of each part and residual_other the
            larger, probe_bottom the smallest and probe_top the largest.
        processes: workers that did anything.
        memory_before_bytes: what a process held before its first matrix, the largest.
        peak_memory_bytes: the most that one process held; per process in peak_memory_bytes_per_process.
        peak_gpu_memory_bytes: the most that one process held on its GPU.
        largest_matrix_bytes: of the largest matrix as the engine takes it, float32 or float64.
        store: the folder.
    """

    matrices: int
    computed: int
    found: int
    failed: list[dict[str, str]]
    wrong_call: bool
    unfinished: list[str]
    removed: int
    lost_workers: list[str]
    seconds: float
    busy_seconds: float
    matrices_per_second: float
    algorithms: dict[str, int]
    refused: dict[str, int]
    worst: dict[str, float]
    processes: int
    memory_before_bytes: int
    peak_memory_bytes: int
    peak_memory_bytes_per_process: list[int]
    peak_gpu_memory_bytes: int
    largest_matrix_bytes: int
    store: str

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON types."""
        return asdict(self)

    @property
    def problem(self) -> str:
        """What did not get done, in one line; empty where everything is."""
        said = [*self.lost_workers] if self.unfinished else []
        if self.failed:
            first = self.failed[0]
            said.append(f"{len(self.failed)} of {self.matrices} matrices failed: {first['name']}: {first['error']}")
            said += [f"{f['name']}: {f['error']}" for f in self.failed[1:]]
        if self.unfinished:
            said.append(f"{len(self.unfinished)} of {self.matrices} matrices were not done; the same call goes on")
        return "; ".join(said)

    @property
    def exit_code(self) -> int:
        """0 where everything is done, 2 where weights failed that cannot be decomposed, 1 for what should not be."""
        if self.unfinished or (self.failed and not self.wrong_call):
            return 1
        return 2 if self.failed else 0


def progress_of(job: Job, seconds: float) -> Progress:
    """How far a job is, by what its ledger says."""
    records = job.ledger.all(len(job.weights))
    all_costs = sum(cost(w) for w in job.weights)
    worst = [_worst(c) for c in _certificates(records.values())]
    return Progress(
        done=len(records),
        total=len(job.weights),
        share=sum(cost(job.weights[i]) for i in records) / all_costs,
        per_second=len(records) / max(seconds, 1e-9),
        worst=max(worst, default=None),
    )


def add_up(job: Job, seconds: float, lost_workers: Sequence[str] = ()) -> Filled:
    """What a job has come to, by what its ledger says."""
    records = job.ledger.afresh().all(len(job.weights))
    good = [r for r in records.values() if r["error"] is None]
    failed = [r for r in records.values() if r["error"] is not None]
    certificates = list(_certificates(good))
    peaks: dict[int, int] = {}
    for r in records.values():
        peaks[r["worker"]] = max(peaks.get(r["worker"], 0), r["peak_memory_bytes"])
    return Filled(
        matrices=len(job.weights),
        computed=sum(r["computed"] for r in good),
        found=sum(not r["computed"] for r in good),
        failed=[{"name": r["name"], "error": r["error"]} for r in failed],
        wrong_call=bool(failed) and all(r["wrong_call"] for r in failed),
        unfinished=[w.name for i, w in enumerate(job.weights) if i not in records],
        removed=sum(not _kept(job, i, r) for i, r in records.items() if r["error"] is None),
        lost_workers=list(lost_workers),
        seconds=seconds,
        busy_seconds=sum(r["seconds"] for r in records.values()),
        matrices_per_second=len(good) / max(seconds, 1e-9),
        algorithms=dict(Counter(c["algorithm"] for c in certificates)),
        refused=dict(Counter(name for c in certificates for name in c["refused"])),
        worst=_worst_values(list(_parts(good))),
        processes=len(peaks),
        memory_before_bytes=max((r["memory_before_bytes"] for r in records.values()), default=0),
        peak_memory_bytes=max(peaks.values(), default=0),
        peak_memory_bytes_per_process=[peaks[worker] for worker in sorted(peaks)],
        peak_gpu_memory_bytes=max((r["peak_gpu_memory_bytes"] for r in records.values()), default=0),
        largest_matrix_bytes=max(w.shape[0] * w.shape[1] * (8 if w.stored.dtype == "F64" else 4) for w in job.weights),
        store=str(job.store.folder),
    )


def _kept(job: Job, item: int, record: Mapping[str, Any]) -> bool:
    dtype = job.weights[item].torch_dtype
    return all(job.store.holds(record["key"], part, dtype, job.strict) for part in job.parts)


def _parts(records: Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    return (part for record in records for part in record["parts"] if part["certificate"] is not None)


def _certificates(records: Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    return (part["certificate"] for part in _parts(records))


def _worst(certificate: Mapping[str, Any]) -> float:
    residual = min(certificate["residual_left"], certificate["residual_right"])
    return max(certificate["estimate"], residual, certificate["orthonormality"])


def _worst_values(parts: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    if not parts:
        return {}
    certificates = [part["certificate"] for part in parts]
    residuals = [sorted((c["residual_left"], c["residual_right"])) for c in certificates]
    probes = {
        f"probe_{kind}": worst(found)
        for kind, worst in (("bottom", min), ("top", max))
        if (found := [p["certificate"]["probe"] for p in parts if p["part"] == kind and p["certificate"]["probe"]])
    }
    return {
        "estimate": max(c["estimate"] for c in certificates),
        "residual": max(smaller for smaller, _ in residuals),
        "residual_other": max(larger for _, larger in residuals),
        "orthonormality": max(c["orthonormality"] for c in certificates),
        **probes,
    }

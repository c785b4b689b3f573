"""The store: each weight is decomposed once, and every run, process and rank reads the same numbers.

What is kept is named by the weight's values and shape, the part, its dtype and the engine's version, so that nothing
has to be declared invalid: another weight or another engine looks elsewhere.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from milora.decompositions.claims import Busy
from milora.decompositions.entry import Corrupt, EntryName, read_entry, write_entry
from milora.decompositions.inventory import LOCK, entries_of, remove, shrink, sweep
from milora.decompositions.part import Part
from milora.errors import MiloraError
from milora.linalg import SVD, VERSION
from milora.linalg.svd import check_rank, middle_indices
from milora.models.cache import cache_folder, cache_limit
from milora.models.digest import Digest, weight_digest

log = logging.getLogger("milora.decompositions")


class Store:
    """Decompositions in a folder, which any number of processes may use at the same time.

    A store that cannot be written to, or whose disk is full, says so once and computes without keeping.

    Args:
        folder: where it lies; made when the first result is written.
        limit: bytes it may take; what was not used for longest goes first. None is no limit.
    """

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        self.folder = folder
        self.limit = limit
        self._size: int | None = None  # in bytes when last counted, and what was written since
        self._warned = False

    def compute(
        self,
        W: Tensor,  # (m, n)
        part: Part,
        *,
        name: str = "",
        strict: bool = False,
        wait: bool = True,
        digest: Digest | None = None,
    ) -> SVD:
        """A part of a weight's decomposition: read where it is there, else computed and kept.

        Args:
            W: the weight, in any floating dtype.
            part: which triplets.
            name: the weight's name, for people who list the store.
            strict: only with a strict certificate ("bottom" and "top" have one).
            wait: wait where another process is computing this weight.
            digest: the weight's digest, where it is known.

        Returns:
            The part on the weight's device, in float64 for a float64 weight and else in float32.

        Raises:
            Busy: with `wait=False`, where another process is computing this weight.
            MiloraError: what the engine refuses: no matrix, NaN or Inf, a rank that it does not have.
        """
        if W.ndim != 2 or 0 in W.shape:
            raise MiloraError(f"weight: got shape {tuple(W.shape)}, allowed a matrix with at least one entry")
        part.check(min(W.shape))
        strict = strict and part.kind in ("bottom", "top")
        key = (digest or weight_digest(W)).key
        found = self._read(key, part, W.dtype, strict)
        if found is not None:
            return _on(found, W.device)
        lock = self._lock(key, wait)
        try:
            # Whoever held the lock before may have computed it.
            found = self._read(key, part, W.dtype, strict)
            if found is not None:
                return _on(found, W.device)
            svd = part.compute(W, strict)
            if svd.certificate is not None and svd.certificate.refused:
                failed, taken = ", ".join(svd.certificate.refused), svd.certificate.algorithm
                log.info("store: %s of %s: %s failed a check, %s was taken", part.name, name or key, failed, taken)
            if lock is not None:
                self._keep(key, part, svd, {"name": name, "shape": list(W.shape)})
            return svd
        finally:
            if lock is not None:
                lock.release()

    def holds(self, digest: str, part: Part, dtype: torch.dtype, strict: bool = False) -> bool:
        """Whether a part of the weight with this key is there, for a weight of this dtype."""
        return next(self._candidates(digest, part, dtype, strict), None) is not None

    def _weight(self, key: str) -> Path:
        return self.folder / key[:2] / key

    def _candidates(self, key: str, part: Part, dtype: torch.dtype, strict: bool) -> Iterator[tuple[Path, Part]]:
        """The files that can serve a part, the smallest first."""
        for entry in sorted(entries_of(self._weight(key)), key=lambda e: e.size):
            name = entry.name
            if name.version == VERSION and name.dtype == _result_dtype(dtype) and (name.strict or not strict):
                held = name.holds(part)
                if held is not None:
                    yield entry.path, held

    def _read(self, key: str, part: Part, dtype: torch.dtype, strict: bool) -> SVD | None:
        useless: set[Path] = set()
        while True:
            candidates = (c for c in self._candidates(key, part, dtype, strict) if c[0] not in useless)
            path, held = next(candidates, (None, part))
            if path is None:
                return None
            try:
                svd, _ = read_entry(path)
            except FileNotFoundError:
                continue  # it has made way for a larger one: look again
            except Corrupt as problem:
                log.warning("store: %s is corrupt (%s): removed, and computed again", path, problem)
                useless.add(path)
                with suppress(OSError):
                    path.unlink()
            except OSError as error:
                self._warn(f"{path} cannot be read ({error})")
                useless.add(path)
            else:
                with suppress(OSError):
                    os.utime(path)
                return part.of(held, svd)

    def _lock(self, key: str, wait: bool) -> FileLock | None:
        path = self._weight(key) / LOCK
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path)
            lock.acquire(timeout=-1 if wait else 0)
        except Timeout:
            raise Busy(key) from None
        except (OSError, NotImplementedError) as error:
            self._warn(f"{path.parent} cannot be written to ({error}); results are not kept")
            return None
        return lock

    def _keep(self, key: str, part: Part, svd: SVD, weight: dict[str, object]) -> None:
        strict = svd.certificate is not None and svd.certificate.strict
        dtype = str(svd.S.dtype).removeprefix("torch.")
        name = EntryName(part.name, dtype, VERSION, strict)
        path = self._weight(key) / str(name)
        indices = None if part.indices is None else list(part.indices)
        record = {"key": key, "part": part.name, "indices": indices, "dtype": dtype, "version": VERSION, **weight}
        sweep(path.parent)
        try:
            write_entry(path, svd, record)
            size = path.stat().st_size
        except (MiloraError, OSError) as error:
            self._warn(f"{error}; results are not kept")
            return
        self._drop_served_by(path, name, part)
        self._stay_within_limit(path, size)

    def _drop_served_by(self, path: Path, name: EntryName, part: Part) -> None:
        for entry in entries_of(path.parent):
            other = entry.name
            kind, _, r = other.part.partition("-")
            smaller = kind == part.kind and kind in ("bottom", "top") and int(r) <= (part.r or 0)
            alike = (other.dtype, other.version) == (name.dtype, name.version) and (name.strict or not other.strict)
            if smaller and alike and entry.path != path:
                remove(entry)

    def _stay_within_limit(self, path: Path, written: int) -> None:
        if self.limit is None:
            return
        self._size = None if self._size is None else self._size + written
        if self._size is None or self._size > self.limit:
            self._size, gone = shrink(self.folder, self.limit, path)
            if gone:
                log.info("store: %d entries removed, to stay under %d bytes", gone, self.limit)

    def _warn(self, problem: str) -> None:
        if not self._warned:
            self._warned = True
            log.warning("store: %s", problem)


class StoredDecomposition:
    """A weight's decomposition, asked for part by part, each read from a store or computed and kept there.

    Args:
        W: (m, n), any floating dtype.
        store: the store.
        name: the weight's name.
        wait: see `Store.compute`.
        digest: the weight's digest, where it is known.
    """

    def __init__(
        self,
        W: Tensor,  # (m, n)
        store: Store,
        name: str = "",
        wait: bool = True,
        digest: Digest | None = None,
    ) -> None:
        self.W, self.store, self.name, self.wait = W, store, name, wait
        self._digest = digest

    def __len__(self) -> int:
        return min(self.W.shape)

    def top(self, r: int) -> SVD:
        """The r principal triplets."""
        return self._part(Part.top(r))

    def bottom(self, r: int) -> SVD:
        """The r minor triplets."""
        return self._part(Part.bottom(r))

    def middle(self, r: int) -> SVD:
        """The r central triplets, from index (k - r) // 2 on."""
        check_rank(r, len(self))
        return self.take(middle_indices(r, len(self)))

    def take(self, indices: Tensor) -> SVD:  # indices (r,), rising
        """The triplets at `indices`, 0 being the largest singular value."""
        return self._part(Part.take(indices.tolist()))

    def full(self) -> SVD:
        """All triplets."""
        return self._part(Part.full())

    def _part(self, part: Part) -> SVD:
        self._digest = self._digest or weight_digest(self.W)
        return self.store.compute(self.W, part, name=self.name, wait=self.wait, digest=self._digest)


_chosen: list[Store | None] = []


def default_store() -> Store | None:
    """The store of this process: what `using` chose, else the one in the cache folder; None where it is switched off.

    MILORA_STORE=off switches it off, MILORA_CACHE names the cache folder, MILORA_CACHE_SIZE its limit.

    Raises:
        MiloraError: MILORA_STORE or MILORA_CACHE_SIZE has a value that is not allowed.
    """
    if _chosen:
        return _chosen[-1]
    switch = os.environ.get("MILORA_STORE", "on")
    if switch not in ("on", "off", ""):
        raise MiloraError(f"MILORA_STORE: got {switch!r}, allowed on, off")
    return None if switch == "off" else _store(store_folder(), cache_limit())


@cache
def _store(folder: Path, limit: int) -> Store:
    # One object a process, so that what it has to say of its folder is said once.
    return Store(folder, limit)


def store_folder() -> Path:
    """Where the store lies by default."""
    return cache_folder() / "decompositions"


@contextmanager
def using(store: Store | None) -> Generator[None]:
    """Within the block, this process reads from and writes to the given store; None is none."""
    _chosen.append(store)
    try:
        yield
    finally:
        _chosen.pop()


def _result_dtype(dtype: torch.dtype) -> str:
    return "float64" if dtype == torch.float64 else "float32"


def _on(svd: SVD, device: torch.device) -> SVD:
    if svd.S.device == device:
        return svd
    return replace(svd, U=svd.U.to(device), S=svd.S.to(device), Vh=svd.Vh.to(device))

"""The store: what serves what, what is found corrupt, what happens where nothing can be kept."""

import errno
import logging
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from milora.decompositions import Part, Store, default_store, entry, inventory, using, weight_digest
from milora.errors import MiloraError
from milora.linalg import SVD, VERSION, bottom, full, take, top


def same(a: SVD, b: SVD) -> bool:
    return all(torch.equal(getattr(a, n), getattr(b, n)) for n in ("U", "S", "Vh")) and (
        (a.resolution, a.certificate) == (b.resolution, b.certificate)
    )


def names(store: Store) -> list[str]:
    return sorted(e.path.name for e in inventory.entries(store.folder))


PARTS = [Part.bottom(4), Part.top(4), Part.take([0, 3, 9]), Part.full(), Part.values()]


@pytest.mark.parametrize("part", PARTS, ids=lambda p: p.kind)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_what_is_read_is_what_was_computed(store, W, computed, part, dtype):
    W = W.to(dtype)
    first = store.compute(W, part)
    again = store.compute(W, part)
    assert computed == [part.name]
    assert same(first, again)
    assert first.S.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    computations = {
        "bottom": lambda: bottom(W, 4),
        "top": lambda: top(W, 4),
        "take": lambda: take(W, torch.tensor([0, 3, 9])),
        "full": lambda: full(W),
    }
    direct = computations.get(part.kind)
    if direct:
        assert same(first, direct())
    else:
        assert torch.allclose(first.S, full(W).S) and first.U.shape == (24, 0) and first.Vh.shape == (0, 16)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_what_is_read_goes_where_the_weight_is(store, W, computed):
    first = store.compute(W, Part.bottom(4))
    again = store.compute(W.cuda(), Part.bottom(4))
    assert again.U.is_cuda and again.S.is_cuda and again.Vh.is_cuda and torch.equal(again.U.cpu(), first.U)
    assert computed == ["bottom-4"]


@pytest.mark.parametrize("kind", ["bottom", "top"])
def test_a_larger_rank_serves_every_smaller_one(store, W, computed, kind):
    small = store.compute(W, Part(kind, 3))
    large = store.compute(W, Part(kind, 8))
    assert names(store) == [f"{kind}-8.float32.v{VERSION}.safetensors"]
    for r in (1, 3, 8):
        assert same(store.compute(W, Part(kind, r)), getattr(large, kind)(r))
    assert computed == [f"{kind}-3", f"{kind}-8"]
    assert len(small) == 3


def test_full_serves_every_part_and_takes_nothing_away(store, W, computed):
    store.compute(W, Part.bottom(2))
    whole = store.compute(W, Part.full())
    assert len(names(store)) == 2
    assert same(store.compute(W, Part.top(5)), whole.top(5))
    assert same(store.compute(W, Part.bottom(5)), whole.bottom(5))
    assert same(store.compute(W, Part.take([1, 7])), whole.take(torch.tensor([1, 7])))
    assert computed == ["bottom-2", "full"]
    store.compute(W, Part.values())  # more exact than the values of the whole
    assert computed == ["bottom-2", "full", "values"]


def test_other_parts_serve_nothing_else(store, W, computed):
    for part in (Part.bottom(4), Part.top(4), Part.take([0, 1]), Part.take([0, 2]), Part.values(), Part.full()):
        assert not store.holds(weight_digest(W).key, part, W.dtype)
        store.compute(W, part)
        assert store.holds(weight_digest(W).key, part, W.dtype)
    assert len(computed) == len(set(computed)) == 6
    assert not store.holds(weight_digest(W).key, Part.bottom(4), torch.float64)
    assert not store.holds(weight_digest(W + 1).key, Part.bottom(4), W.dtype)


def test_another_version_is_not_served(store, W, computed, monkeypatch):
    store.compute(W, Part.bottom(4))
    monkeypatch.setattr("milora.decompositions.store.VERSION", VERSION + 1)
    assert not store.holds(weight_digest(W).key, Part.bottom(4), W.dtype)
    store.compute(W, Part.bottom(4))
    store.compute(W, Part.bottom(8))
    assert computed == ["bottom-4", "bottom-4", "bottom-8"]
    # Another version's entries are another engine's to remove.
    assert len(names(store)) == 2


def test_a_strict_request_is_served_by_a_strict_certificate_alone(store, W, monkeypatch):
    asked: list[tuple[str, bool]] = []
    compute = Part.compute

    def certified(self, weight, strict=False):
        asked.append((self.name, strict))
        svd = compute(self, weight)
        certificate = type(svd.certificate)(**{**svd.certificate.as_dict(), "refused": (), "strict": strict})
        return SVD(svd.U, svd.S, svd.Vh, svd.resolution, certificate)

    monkeypatch.setattr(Part, "compute", certified)
    store.compute(W, Part.bottom(8))
    assert store.compute(W, Part.bottom(4), strict=True).certificate.strict
    assert store.compute(W, Part.bottom(4), strict=True).certificate.strict
    assert store.compute(W, Part.bottom(3)).certificate.strict
    assert asked == [("bottom-8", False), ("bottom-4", True)]
    # A larger one without proof takes no proof away; with one it replaces both.
    store.compute(W, Part.bottom(10))
    assert len(names(store)) == 2
    store.compute(W, Part.bottom(10), strict=True)
    assert names(store) == [f"bottom-10.float32.v{VERSION}.strict.safetensors"]
    # Nothing but the ends of the spectrum has such a certificate to wait for.
    store.compute(W, Part.full(), strict=True)
    store.compute(W, Part.full(), strict=True)
    assert asked[-2:] == [("bottom-10", True), ("full", False)]


def truncated(content: bytes) -> bytes:
    return content[: len(content) - 40]


def flipped(position: int):
    def flip(content: bytes) -> bytes:
        return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]

    return flip


HARM = {
    "truncated": truncated,
    "head alone": lambda c: c[:100],
    "a byte of data": flipped(-50),
    "a byte of the head": flipped(20),
    "the size of the head": flipped(0),
    "a digit of the record": lambda c: c.replace(b'\\"resolution\\": ', b'\\"resolution\\":1', 1),
    "empty": lambda c: b"",
    "other bytes": lambda c: b"\xff" * len(c),
    "longer": lambda c: c + b"\0" * 8,
}


@pytest.mark.parametrize("harm", HARM)
def test_a_corrupt_entry_is_found_named_and_computed_again(store, W, computed, caplog, harm):
    first = store.compute(W, Part.bottom(4))
    path = next(inventory.entries(store.folder)).path
    good = path.read_bytes()
    bad = HARM[harm](good)
    assert bad != good
    path.unlink()
    path.write_bytes(bad)
    assert [p is None for _, p in inventory.verify(store.folder)] == [False]
    with caplog.at_level(logging.WARNING, "milora.decompositions"):
        again = store.compute(W, Part.bottom(4))
    assert [r.getMessage().startswith(f"store: {path} is corrupt") for r in caplog.records] == [True]
    assert "\n" not in caplog.records[0].getMessage()
    assert same(first, again)
    assert computed == ["bottom-4", "bottom-4"]
    assert same(entry.read_entry(path)[0], first)
    assert [p for _, p in inventory.verify(store.folder)] == [None]


def test_every_flipped_bit_is_found(store, W):
    """All of the head and some of the data: no flip may give other numbers."""
    store.compute(W, Part.bottom(1))
    path = next(inventory.entries(store.folder)).path
    good = path.read_bytes()
    reference, _ = entry.read_entry(path)
    found, harmless = 0, 0
    for position in range(len(good)):
        path.unlink()
        path.write_bytes(flipped(position)(good))
        try:
            svd, _ = entry.read_entry(path)
        except entry.Corrupt:
            found += 1
        else:
            assert same(svd, reference)
            harmless += 1
    assert found >= 0.95 * len(good) and harmless <= 8


def rewritten(path: Path, tensors: dict | None = None, **changes: object) -> None:
    """The entry with other contents and a checksum that fits them."""
    import json

    with safe_open(path, framework="pt") as file:
        held = {n: file.get_tensor(n).clone() for n in file.keys()} | (tensors or {})  # noqa: SIM118
        record = json.dumps(json.loads(file.metadata()["record"]) | changes)
    path.unlink()
    save_file(held, path, {"record": record, "checksum": entry._checksum(record, held)})


@pytest.mark.parametrize(
    "changes",
    [
        {"tensors": {"U": torch.zeros(24, 3)}},
        {"tensors": {"Vh": torch.full((4, 16), float("nan"))}},
        {"tensors": {"S": torch.tensor([1.0, float("inf"), 0.0, 0.0])}},
        {"tensors": {"more": torch.zeros(1)}},
        {"key": "0" * 32},
        {"part": "bottom-3"},
        {"version": 0},
        {"shape": [24, 17]},
        {"certificate": {"algorithm": "x"}},
        {"dtype": "float64"},
    ],
    ids=str,
)
def test_wrong_contents_with_a_right_checksum_are_found(store, W, computed, caplog, changes):
    store.compute(W, Part.bottom(4))
    path = next(inventory.entries(store.folder)).path
    rewritten(path, **changes)
    store.compute(W, Part.bottom(4))
    assert "is corrupt" in caplog.text
    assert computed == ["bottom-4", "bottom-4"]


def test_a_corrupt_entry_gives_way_to_a_larger_one_that_serves(store, W, computed):
    store.compute(W, Part.bottom(4))
    store.compute(W, Part.full())
    next(e for e in inventory.entries(store.folder) if "bottom" in e.path.name).path.write_bytes(b"")
    store.compute(W, Part.bottom(4))
    assert computed == ["bottom-4", "full"]


def test_an_entry_that_vanishes_while_it_is_read_is_looked_for_again(store, W, computed, monkeypatch):
    large = store.compute(W, Part.bottom(8))
    smaller = next(inventory.entries(store.folder)).path.with_name(f"bottom-4.float32.v{VERSION}.safetensors")
    smaller.write_bytes(b"")
    read = entry.read_entry

    def replaced(path):
        if path == smaller:
            smaller.unlink()
            raise FileNotFoundError(path)
        return read(path)

    monkeypatch.setattr("milora.decompositions.store.read_entry", replaced)
    assert same(store.compute(W, Part.bottom(4)), large.bottom(4))
    assert computed == ["bottom-8"]


def test_the_least_recently_used_goes_first(tmp_path, computed):
    weights = [torch.randn(32, 32, generator=torch.Generator().manual_seed(i)) for i in range(6)]
    free = Store(tmp_path / "store")
    for age, W in enumerate(weights[:5]):
        free.compute(W, Part.bottom(4))
        newest = max(inventory.entries(free.folder), key=lambda e: e.used)
        os.utime(newest.path, (1000 + age, 1000 + age))
    size = next(inventory.entries(free.folder)).size
    limited = Store(tmp_path / "store", limit=5 * size + 500)
    limited.compute(weights[0], Part.bottom(4))  # used now
    limited.compute(weights[5], Part.bottom(4))
    there = [limited.holds(weight_digest(W).key, Part.bottom(4), W.dtype) for W in weights]
    assert there == [True, False, False, True, True, True]
    assert sum(e.size for e in inventory.entries(free.folder)) <= 0.9 * limited.limit


def test_the_entry_just_written_stays_whatever_the_limit(tmp_path, W, computed):
    small = Store(tmp_path / "store", limit=10)
    small.compute(W, Part.bottom(4))
    small.compute(W + 1, Part.bottom(4))
    small.compute(W + 1, Part.bottom(4))
    assert len(names(small)) == 1 and len(computed) == 2


def test_where_nothing_can_be_kept_it_is_said_once_and_computed(tmp_path, W, computed, caplog):
    (tmp_path / "store").write_text("a file where a folder should be")
    closed = Store(tmp_path / "store")
    for _ in range(2):
        assert same(closed.compute(W, Part.bottom(4)), bottom(W, 4))
    assert computed == ["bottom-4", "bottom-4"]
    assert len(caplog.records) == 1 and "cannot be written to" in caplog.text


def test_a_full_disk_is_said_once_and_computed(store, W, computed, caplog, monkeypatch):
    def full_disk(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(entry, "save_file", full_disk)
    for _ in range(2):
        assert same(store.compute(W, Part.bottom(4)), bottom(W, 4))
    assert computed == ["bottom-4", "bottom-4"]
    assert len(caplog.records) == 1 and "no space left" in caplog.text
    left = [p for p in store.folder.rglob("*") if p.is_file() and p.name != inventory.LOCK]
    assert not left


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_store_serves_what_it_holds(store, W, computed, caplog):
    store.compute(W, Part.bottom(4))
    for folder, _, _ in os.walk(store.folder):
        os.chmod(folder, 0o555)
    try:
        store.compute(W, Part.bottom(3))
        store.compute(W, Part.bottom(5))
        store.compute(W + 1, Part.bottom(5))
    finally:
        for folder, _, _ in os.walk(store.folder):
            os.chmod(folder, 0o755)
    assert computed == ["bottom-4", "bottom-5", "bottom-5"]
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("W", "part", "says"),
    [
        (torch.zeros(3), Part.bottom(1), "shape"),
        (torch.zeros(3, 0), Part.bottom(1), "shape"),
        (torch.full((3, 3), float("nan")), Part.bottom(1), "NaN"),
        (torch.zeros(3, 3), Part.bottom(4), "1 to 3"),
        (torch.zeros(3, 3), Part.take([0, 3]), "rising"),
        (torch.zeros(3, 3), Part.take([1, 0]), "rising"),
        (torch.zeros(3, 3), Part.take([]), "rising"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_and_not_kept(store, W, part, says):
    with pytest.raises(MiloraError, match=says):
        store.compute(W, part)
    assert not names(store)


def test_the_switches(tmp_path, monkeypatch):
    monkeypatch.setenv("MILORA_CACHE", str(tmp_path))
    assert default_store().folder == tmp_path / "decompositions"
    assert default_store().limit == 20 * 10**9
    for given, limit in {"500MB": 500 * 10**6, "1.5 tb": 15 * 10**11, "12": 12, "3k": 3000}.items():
        monkeypatch.setenv("MILORA_CACHE_SIZE", given)
        assert default_store().limit == limit
    monkeypatch.setenv("MILORA_CACHE_SIZE", "much")
    with pytest.raises(MiloraError, match="MILORA_CACHE_SIZE: got 'much', allowed"):
        default_store()
    with using(None):
        assert default_store() is None
    other = Store(tmp_path / "other")
    monkeypatch.setenv("MILORA_STORE", "off")
    with using(other):
        assert default_store() is other
    assert default_store() is None
    monkeypatch.setenv("MILORA_STORE", "maybe")
    with pytest.raises(MiloraError, match="MILORA_STORE: got 'maybe', allowed on, off"):
        default_store()

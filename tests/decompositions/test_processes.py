"""Several processes on one store."""

import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from decompositions.fill import weights
from milora.decompositions import Part, Store, inventory, weight_digest

COUNT = 12


def start(folder: Path, seconds: float) -> list[subprocess.Popen[str]]:
    script = str(Path(__file__).with_name("fill.py"))
    command = [sys.executable, script, str(folder / "store"), str(folder / "log"), str(seconds), "7", str(COUNT)]
    both = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        assert process.stdout.readline() == "ready\n"
    for process in both:
        process.stdin.write("\n")
        process.stdin.flush()
    return both


@pytest.fixture
def processes(tmp_path):
    """Two processes that start at the same moment on one store."""
    started: list[subprocess.Popen[str]] = []

    def begin(seconds: float) -> list[subprocess.Popen[str]]:
        started.extend(start(tmp_path, seconds))
        return started

    yield begin
    for process in started:
        process.kill()
        process.wait()


def computed(folder: Path) -> list[str]:
    return (folder / "log").read_text().split()


def check_whole(folder: Path) -> None:
    checked = list(inventory.verify(folder / "store"))
    assert [problem for _, problem in checked] == [None] * COUNT
    store = Store(folder / "store")
    for W in weights(7, COUNT).values():
        assert store.holds(weight_digest(W).key, Part.bottom(4), W.dtype)
    entries = {entry.path for entry, _ in checked}
    assert {p.name for p in (folder / "store").rglob("*") if p.is_file() and p not in entries} == {inventory.LOCK}


def test_two_processes_divide_the_work_and_read_the_same(tmp_path, processes):
    both = processes(0.05)
    printed = [sorted(p.communicate(timeout=60)[0].split("\n")) for p in both]
    assert printed[0] == printed[1] and len(printed[0]) == COUNT + 1
    assert Counter(computed(tmp_path)) == {f"w{i}": 1 for i in range(COUNT)}
    check_whole(tmp_path)


def test_one_killed_in_the_middle_costs_the_matrix_in_hand(tmp_path, processes):
    both = processes(0.2)
    while len(computed(tmp_path)) < 5 if (tmp_path / "log").exists() else True:
        time.sleep(0.01)
    both[0].send_signal(signal.SIGKILL)
    both[0].wait()
    done = {e.path.parent.name for e in inventory.entries(tmp_path / "store")}
    before = [n for n, W in weights(7, COUNT).items() if weight_digest(W).key in done]
    assert 0 < len(before) < COUNT
    printed = both[1].communicate(timeout=60)[0].split("\n")
    assert both[1].returncode == 0 and len(printed) == COUNT + 1
    count = Counter(computed(tmp_path))
    assert all(count[n] == 1 for n in before)
    # Only what the killed process had in hand was begun twice.
    assert sum(count.values()) <= COUNT + 1 and len(count) == COUNT
    check_whole(tmp_path)


def test_one_killed_while_it_writes_leaves_nothing_behind(tmp_path, processes):
    store = Store(tmp_path / "store")
    W = weights(7, COUNT)["w3"]
    store.compute(W, Part.bottom(2))
    held = next(inventory.entries(store.folder)).path
    # What a writer leaves that is killed between its first byte and its last.
    name = held.name.replace("bottom-2", "bottom-4")
    scratch = held.parent / f".{name}.abc"
    scratch.mkdir()
    (scratch / name).write_bytes(held.read_bytes()[:500])
    for process in processes(0.0):
        process.communicate(timeout=60)
    check_whole(tmp_path)

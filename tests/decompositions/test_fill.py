"""A checkpoint decomposed into the store: by one process, by several, by ranks; stopped, resumed, and what fails."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from milora import SpectralConfig
from milora.adapters.start import base_weight
from milora.decompositions import Part, Store, inventory, using, weight_digest
from milora.decompositions.fill import Job, Worker, cost, order
from milora.decompositions.fill_plan import part_bytes, parts_named, planned
from milora.decompositions.ledger import Ledger
from milora.decompositions.workers import Rank, fill
from milora.errors import MiloraError
from milora.models.weights import LinearWeight, linear_weights

BOTTOM = (Part.bottom(4),)


@pytest.fixture
def model(tiny_llama: Path, tmp_path: Path) -> Path:
    """The tiny Llama in several files."""
    folder = tmp_path / "model"
    AutoModelForCausalLM.from_pretrained(tiny_llama).save_pretrained(folder, max_shard_size="80KB")
    return folder


@pytest.fixture
def weights(model: Path) -> list[LinearWeight]:
    return linear_weights(model).weights


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    asked: list[str] = []
    compute = Part.compute
    monkeypatch.setattr(Part, "compute", lambda self, W, strict=False: (asked.append(self.name), compute(self, W))[1])
    return asked


def held(store: Store) -> int:
    checked = list(inventory.verify(store.folder))
    assert [problem for _, problem in checked] == [None] * len(checked)
    return len(checked)


def test_every_matrix_is_computed_once_and_found_afterwards(weights, store, computed):
    told = []
    first = fill(weights, BOTTOM, store, show=told.append)
    assert (first.matrices, first.computed, first.found, first.failed, first.unfinished) == (14, 14, 0, [], [])
    assert [p.done for p in told] == list(range(1, 15)) and told[-1].share == pytest.approx(1)
    assert all(a.share < b.share for a, b in pairwise(told))
    assert (first.exit_code, first.problem, first.removed, held(store)) == (0, "", 0, 14)
    again = fill(weights, BOTTOM, store)
    assert (again.computed, again.found, len(computed)) == (0, 14, 14)
    assert again.worst == first.worst and sum(again.algorithms.values()) == 14
    smaller = fill(weights, (Part.bottom(2),), store)  # served by the larger rank
    assert (smaller.computed, smaller.found) == (0, 14)
    json.dumps(first.as_dict(), allow_nan=False)


def test_the_result_says_what_it_took(weights, store):
    done = fill(weights, parts_named("all", 4), store)
    assert sum(done.algorithms.values()) == 28 and held(store) == 28
    assert {"estimate", "residual", "residual_other", "orthonormality"} <= done.worst.keys()
    assert done.largest_matrix_bytes == 112 * 64 * 4
    assert done.peak_memory_bytes >= done.memory_before_bytes > 10e6
    assert done.peak_memory_bytes_per_process == [done.peak_memory_bytes] and done.processes == 1


@pytest.mark.parametrize("method", ["milora", "mica", "pissa"])
def test_an_adapter_made_afterwards_computes_nothing(model, weights, store, monkeypatch, method):
    fill(weights, (Part.top(4),) if method == "pissa" else BOTTOM, store)

    def refuse(*_, **__):
        raise AssertionError("a decomposition was run")

    monkeypatch.setattr(Part, "compute", refuse)
    base = AutoModelForCausalLM.from_pretrained(model)
    with using(store):
        get_peft_model(base, SpectralConfig(method=method, r=4, target_modules="all-linear", task_type="CAUSAL_LM"))


def test_a_conv1d_has_the_key_that_its_adapter_asks_for(tmp_path, store, monkeypatch):
    torch.manual_seed(0)
    config = GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=50, bos_token_id=0, eos_token_id=0)
    base = GPT2LMHeadModel(config)
    base.save_pretrained(tmp_path / "gpt2")
    weights = linear_weights(tmp_path / "gpt2").weights
    assert len(weights) == 4
    for weight in weights:
        with base_weight(base.get_submodule(weight.name)) as W:
            assert weight_digest(weight.load()) == weight_digest(W)
    fill(weights, BOTTOM, store)
    monkeypatch.setattr(Part, "compute", lambda *_, **__: pytest.fail("a decomposition was run"))
    with using(store):
        get_peft_model(base, SpectralConfig(method="milora", r=4, target_modules="all-linear", task_type="CAUSAL_LM"))


def test_workers_begin_with_their_own_share_longest_first(weights):
    alone = order(weights)
    costs = [cost(weights[i]) for i in alone]
    assert sorted(alone) == list(range(14)) and costs == sorted(costs, reverse=True) and costs[0] > costs[-1]
    both = [order(weights, i, 2) for i in (0, 1)]
    assert [sorted(o) for o in both] == [list(range(14))] * 2
    assert set(both[0][:7]) & set(both[1][:7]) == set()
    # What another worker comes to last is what one helps with first.
    assert both[0][7:] == both[1][:7][::-1]


def test_a_worker_passes_over_what_another_has_done(weights, store, computed, tmp_path, monkeypatch):
    job = Job(weights, BOTTOM, store, False, Ledger(tmp_path / "ledger"))
    first = Worker(job, 0, 2).run()
    done = [next(first) for _ in range(9)]  # its own share, and two of the other's
    assert len(computed) == 9
    read: list[str] = []
    load = LinearWeight.load
    monkeypatch.setattr(LinearWeight, "load", lambda self: (read.append(self.name), load(self))[1])
    other = Job(weights, BOTTOM, store, False, Ledger(tmp_path / "ledger"))
    assert sorted(Worker(other, 1, 2).run()) == list(range(14))
    assert len(computed) == 14
    assert sorted(read) == sorted(weights[i].name for i in set(range(14)) - set(done))


def test_records_of_an_earlier_call_do_not_count(tmp_path):
    Ledger(tmp_path).write(3, {"computed": True})
    assert Ledger(tmp_path, since=time.time() - 60).read(3)["computed"]
    assert Ledger(tmp_path, since=time.time() + 60).all(5) == {}


def test_two_processes(weights, store):
    told = []
    done = fill(weights, BOTTOM, store, procs=2, show=told.append)
    assert (done.computed, done.found, done.lost_workers, held(store)) == (14, 0, [], 14)
    assert told[-1].done == 14 and 1 <= done.processes <= 2
    assert multiprocessing.active_children() == []


@pytest.fixture
def held_weight(weights, store) -> FileLock:
    """The lock of one weight of the first worker's share, so that the workers have to wait for it at the end."""
    folder = store.folder / (key := weight_digest(weights[order(weights)[4]].load()).key)[:2] / key
    folder.mkdir(parents=True)
    lock = FileLock(folder / inventory.LOCK)
    lock.acquire()
    yield lock
    lock.release()


def test_the_others_finish_what_a_killed_worker_leaves(weights, store, held_weight):
    killed = []

    def kill(now):
        if now.done == 13 and not killed:
            killed.append(multiprocessing.active_children()[0])
            os.kill(killed[0].pid, signal.SIGKILL)
            held_weight.release()

    done = fill(weights, BOTTOM, store, procs=2, show=kill)
    assert (done.computed + done.found, done.unfinished, done.exit_code) == (14, [], 0)
    assert len(done.lost_workers) == 1 and "was killed (SIGKILL)" in done.lost_workers[0]
    assert held(store) == 14


def test_a_call_whose_workers_all_die_ends_and_says_what_is_missing(weights, store, held_weight):
    def kill(now):
        if now.done == 13:
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGKILL)

    done = fill(weights, BOTTOM, store, procs=2, show=kill)
    assert done.exit_code == 1 and done.unfinished == [weights[order(weights)[4]].name]
    assert len(done.lost_workers) == 2
    assert "killed (SIGKILL)" in done.problem and "1 of 14 matrices were not done" in done.problem
    assert held(store) == 13


def call(*arguments: str, script: str | None = None, **environment: str) -> subprocess.Popen[str]:
    program = [str(Path(__file__).with_name(script))] if script else ["-m", "milora.cli", "decompose"]
    return subprocess.Popen(
        [sys.executable, *program, *arguments],
        env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=listen_to_interrupts,
    )  # fmt: skip


def listen_to_interrupts() -> None:
    """A shell that runs these tests in the background has its children ignore the keyboard."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_stopped_in_the_middle_it_goes_on(model, tmp_path, stop):
    arguments = (str(model), "--rank", "4", "--json")
    process = call("0.2", *arguments, script="slow_call.py", MILORA_CACHE=str(tmp_path))
    store = Store(tmp_path / "decompositions")
    while len(list(inventory.entries(store.folder))) < 3:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(stop)
    process.communicate(timeout=60)
    assert process.returncode == (130 if stop == signal.SIGINT else -signal.SIGKILL)
    before = held(store)
    assert 3 <= before < 14
    out, _ = call(*arguments, MILORA_CACHE=str(tmp_path)).communicate(timeout=120)
    record = json.loads(out)
    assert (record["found"], record["computed"]) == (before, 14 - before)
    assert held(store) == 14


@pytest.mark.slow
def test_ranks_divide_the_work_and_the_first_one_tells(model, tmp_path):
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29511", "MILORA_CACHE": str(tmp_path)}
    both = [
        call(
            "0.3", str(model), "--rank", "4", "--json", script="slow_call.py", RANK=str(i), LOCAL_RANK=str(i), **shared
        )
        for i in (0, 1)
    ]
    printed = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    record = json.loads(printed[0][0])
    assert (record["matrices"], record["computed"], record["found"]) == (14, 14, 0)
    assert record["processes"] == 2 and len(record["peak_memory_bytes_per_process"]) == 2
    assert printed[1][0] == ""
    assert held(Store(tmp_path / "decompositions")) == 14


def test_what_the_environment_says_of_ranks(monkeypatch, weights, store):
    assert Rank.of_environment() == Rank(0, 0, 1)
    for name, value in (("RANK", "3"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "4")):
        monkeypatch.setenv(name, value)
    assert Rank.of_environment() == Rank(3, 1, 4)
    with pytest.raises(MiloraError, match="procs: got 2 under WORLD_SIZE=4, allowed 1"):
        fill(weights, BOTTOM, store, procs=2)
    monkeypatch.setenv("RANK", "4")
    with pytest.raises(MiloraError, match="RANK below WORLD_SIZE"):
        Rank.of_environment()


def damage(model: Path, names: list[str]) -> None:
    for file in model.glob("*.safetensors"):
        tensors = load_file(file)
        for name in names:
            if f"{name}.weight" in tensors:
                tensors[f"{name}.weight"][0, 0] = float("nan")
        save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize("procs", [1, 2])
def test_a_matrix_that_fails_is_named_and_the_others_go_on(model, weights, store, procs):
    names = ["model.layers.0.self_attn.o_proj", "model.layers.1.mlp.up_proj"]
    damage(model, names)
    done = fill(weights, BOTTOM, store, procs=procs)
    assert sorted(f["name"] for f in done.failed) == names and done.computed == held(store) == 12
    assert done.exit_code == 2 and done.problem.startswith("2 of 14 matrices failed: ")
    assert all(name in done.problem for name in names) and "NaN or Inf" in done.problem


def test_an_error_that_is_not_the_callers_is_a_failed_run(weights, store, monkeypatch):
    def run_out(self, W, strict=False):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(Part, "compute", run_out)
    done = fill(weights[:2], BOTTOM, store)
    assert done.exit_code == 1 and done.failed[0]["error"] == "OutOfMemoryError: out of memory"


def test_a_store_that_keeps_nothing_is_a_failure(weights, tmp_path):
    (tmp_path / "file").write_text("")
    done = fill(weights[:3], BOTTOM, Store(tmp_path / "file"))
    assert done.exit_code == 2 and len(done.failed) == 3 and "could not keep it" in done.problem


def test_what_the_limit_removes_again_is_counted(weights, tmp_path):
    done = fill(weights, BOTTOM, Store(tmp_path / "store", limit=10_000))
    assert done.computed == 14 and 0 < done.removed < 14


def test_the_plan_says_what_the_store_will_take(weights, store):
    for part in ("bottom", "all", "full"):
        parts = parts_named(part, 4)
        plan = planned(weights, parts)
        assert [row["name"] for row in plan] == [w.name for w in weights]
        fill(weights, parts, store)
        size = sum(
            e.size for e in inventory.entries(store.folder) if e.name.part.split("-")[0] in {p.kind for p in parts}
        )
        assert sum(row["store_bytes"] for row in plan) == pytest.approx(size, abs=14 * len(parts) * 1500)
    assert part_bytes(Part.bottom(4), weights[0]) == (4 * 128 + 4) * 4
    assert part_bytes(Part.values(), weights[0]) == 64 * 4


@pytest.mark.parametrize(
    ("part", "r", "message"),
    [
        ("middle", 4, "part: got 'middle', allowed bottom, top, all, full"),
        ("bottom", 0, "rank: got 0, allowed 1 or more"),
    ],
)
def test_parts_that_are_none(part, r, message):
    with pytest.raises(MiloraError, match=message):
        parts_named(part, r)


def test_a_rank_over_the_smaller_side_names_the_first_and_counts(weights):
    name = "model.layers.0.self_attn.k_proj"
    message = rf"rank: got 40, over the smaller side of 4 of 14 matrices, the first {name} \(32 x 64\); allowed 1 to 32"
    with pytest.raises(MiloraError, match=message):
        planned(weights, parts_named("bottom", 40))
    assert len(planned(weights, parts_named("full", 40))) == 14

"""How one list is divided."""

import threading
import time

import pytest
import torch

from milora.decompositions import Busy, shared_out


def test_what_is_held_elsewhere_comes_later_and_is_waited_for_last():
    held = {"a": 3, "c": 1, "e": 1}
    calls: list[tuple[str, bool]] = []

    def work(item: str, *, wait: bool) -> str:
        calls.append((item, wait))
        if held.get(item, 0) and not wait:
            held[item] -= 1
            raise Busy(item)
        return item.upper()

    done = list(shared_out("abcde", work))
    assert done == [("b", "B"), ("d", "D"), ("c", "C"), ("e", "E"), ("a", "A")]
    # Waited for only where all that are left are held.
    assert [c for c in calls if c[1]] == [("a", True)]


def test_an_error_is_the_callers():
    def work(item: int, *, wait: bool) -> int:
        return 1 // item

    with pytest.raises(ZeroDivisionError):
        list(shared_out([1, 0], work))
    assert list(shared_out([], work)) == []


@pytest.mark.parametrize("threads", [2, 20])
def test_threads_share_the_list_and_give_the_setting_back(threads: int):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    held, seen, beside = {3}, set(), threading.Barrier(2, timeout=20)

    def work(item: int, *, wait: bool) -> int:
        if item in held and not wait:
            held.clear()
            raise Busy(item)
        if item < 2:
            beside.wait()  # two at the same time, or never
        seen.add((threading.get_ident(), torch.get_num_threads()))
        return item * item

    try:
        done = dict(shared_out(range(6), work, threads))
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert done == {i: i * i for i in range(6)}
    assert {count for thread, count in seen if thread != threading.get_ident()} == {max(1, threads // 8)}


def test_an_error_in_a_thread_is_the_callers_and_ends_the_rest():
    started: list[int] = []

    def work(item: int, *, wait: bool) -> int:
        started.append(item)
        if item == 0:
            raise ValueError("no")
        time.sleep(0.05)
        return item

    before = torch.get_num_threads()
    with pytest.raises(ValueError, match="no"):
        list(shared_out(range(200), work, 2))
    assert len(started) < 100
    assert torch.get_num_threads() == before

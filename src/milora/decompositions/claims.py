"""How any number of processes divide one list without talking to one another: each takes what nobody holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

WORKERS = 8  # each holds a matrix and its workspace: about 0.7 GB for 11008 x 4096

Item = TypeVar("Item")
Result = TypeVar("Result")


class Busy(Exception):
    """Another process holds this weight's lock: it is being decomposed there."""


def shared_out(items: Iterable[Item], work: Callable[..., Result], threads: int = 1) -> Iterator[tuple[Item, Result]]:
    """Work through a list beside other processes that work through the same one.

    Items that another process is at come later, when its result can be read; only where all that are left are held
    elsewhere does this process wait, and then for the first of them.

    Args:
        items: what there is to do.
        work: called as work(item, wait=False), and work(item, wait=True) to wait.
        threads: how many threads of torch's this process may keep busy. Up to WORKERS items are done at the same time
            and share them: matrices side by side are faster than one after the other with all threads.

    Yields:
        Each item once with its result, in the order in which they were done.
    """

    def attempt(item: Item) -> tuple[Item, Result | None, bool]:
        try:
            return item, work(item, wait=False), True
        except Busy:
            return item, None, False

    left = list(items)
    with _mapping(threads) as mapped:
        while left:
            held: list[Item] = []
            for item, result, done in mapped(attempt, left):
                if done:
                    yield item, result  # pyright: ignore[reportReturnType]
                else:
                    held.append(item)
            if len(held) == len(left):
                yield held[0], work(held[0], wait=True)
                held = held[1:]
            left = held


@contextmanager
def _mapping(threads: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """`map`, with as many threads of torch's."""
    if threads == 1:
        yield map
        return
    workers = min(threads, WORKERS)
    # The setting is each thread's own in one of torch's libraries and the process's in another.
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads // workers,))
    try:
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)

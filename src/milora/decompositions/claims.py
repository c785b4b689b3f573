"""How any number of processes divide one list without talking to one another: each takes what nobody holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Busy(Exception):
    """Another process holds this weight's lock: it is being decomposed there."""


def shared_out(items: Iterable[Item], work: Callable[..., Result]) -> Iterator[tuple[Item, Result]]:
    """Work through a list beside other processes that work through the same one.

    Items that another process is at come later, when its result can be read; only where all that are left are held
    elsewhere does this process wait, and then for the first of them.

    Args:
        items: what there is to do.
        work: called as work(item, wait=False), and work(item, wait=True) to wait.

    Yields:
        Each item once with its result, in the order in which they were done.
    """
    left = list(items)
    while left:
        held: list[Item] = []
        for item in left:
            try:
                result = work(item, wait=False)
            except Busy:
                held.append(item)
                continue
            yield item, result
        if len(held) == len(left):
            yield held[0], work(held[0], wait=True)
            held = held[1:]
        left = held

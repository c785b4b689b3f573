"""How one list is divided."""

import pytest

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

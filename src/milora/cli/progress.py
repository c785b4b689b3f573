"""A progress bar for whatever counts what it has done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from milora.cli.output import Output

if TYPE_CHECKING:
    from milora.decompositions.fill_result import Progress as FillProgress


@contextmanager
def progress(output: Output) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function (what, done, all) that draws one bar per kind of thing; nothing stays on the screen."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=output.console, transient=True) as bars:
        current: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in current or done == 0:
                if what in current:
                    bars.remove_task(current[what])
                current[what] = bars.add_task(what, total=total)
            bars.update(current[what], completed=done)

        yield show


@contextmanager
def filling(output: Output) -> Iterator[Callable[[FillProgress], None]]:
    """Yield a function that draws how far a fill is: the bar and the time left go by arithmetic, not by count."""
    columns = (
        TextColumn("{task.fields[count]} matrices"), BarColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[rate]:.2f}/s  worst {task.fields[worst]}"),
    )  # fmt: skip
    # One large matrix may take a minute, and the time left is an average over some of them.
    bars = Progress(*columns, console=output.console, transient=True, speed_estimate_period=600)
    tasks: list[TaskID] = []

    def show(now: FillProgress) -> None:
        # Only who is told anything draws a bar: of several ranks, the first.
        if not tasks:
            bars.start()
            tasks.append(bars.add_task("", total=1.0, count="", rate=0.0, worst=""))
        worst = "-" if now.worst is None else f"{now.worst:.1e}"
        count = f"{now.done}/{now.total}"
        bars.update(tasks[0], completed=now.share, count=count, rate=now.per_second, worst=worst)

    try:
        yield show
    finally:
        if tasks:
            bars.stop()

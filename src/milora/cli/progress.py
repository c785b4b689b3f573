"""A progress bar for whatever counts what it has done."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from milora.cli.output import Output


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

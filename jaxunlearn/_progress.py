"""Progress bars on standard error: for people, never in the way of a pipe.

One live display at a time, shared by everything that runs inside it: a job shows
its runs, a run its epochs.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")

_display: Progress | None = None
_epochs: TaskID | None = None


@contextlib.contextmanager
def showing(enabled: bool = True) -> Iterator[Progress | None]:
    """The live display: the one that is already there, or a new one."""
    global _display, _epochs
    if not enabled or _display is not None:
        yield _display
        return
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as _display:
        try:
            yield _display
        finally:
            _display = _epochs = None


def track(items: Iterable[T], description: str, *, enabled: bool = True) -> Iterator[T]:
    """Yields ``items``; a bar moves when each has been worked on."""
    total = len(items) if isinstance(items, Sized) else None
    with showing(enabled) as display:
        task = display.add_task(description, total=total) if enabled and display else None
        for item in items:
            yield item
            if display is not None and task is not None:
                display.advance(task)
        if display is not None and task is not None:
            display.remove_task(task)


def epoch_done(number, total) -> None:
    """Moves the bar of the training that is running, if a display is live.

    Called from inside compiled trainings. It is one function for all of them, since
    another function object would mean another compilation.
    """
    global _epochs
    if _display is None:
        return
    if _epochs is None:
        _epochs = _display.add_task("epochs", total=int(total))
    finished = int(number) + 1 >= int(total)
    _display.update(_epochs, completed=int(number) + 1, total=int(total), visible=not finished)

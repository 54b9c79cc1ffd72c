"""Progress that is a live bar on a terminal and a few plain lines in a log file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Advance = Callable[[float, float | None, str], None]
"""Called with (done, total, text); the total is ``None`` where it is not known."""

LOG_INTERVAL = 15.0
"""Seconds between two lines of one stage in a log file."""


class Reporter:
    """Says what a run is doing."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def stage(self, name: str) -> Iterator[Advance]:
        """A stage with a beginning and an end.

        Yields:
            A function to call as the work goes on.
        """
        started = time.monotonic()
        if self.console.is_terminal:
            with self._bar() as bar:
                task = bar.add_task(name, total=None, text="")
                yield lambda done, total, text: bar.update(
                    task, completed=done, total=total, text=text
                )
        else:
            self.say(f"{name} ...")
            yield self._log_lines(name, started)
        self.say(f"{name}: {time.monotonic() - started:.1f} s")

    def _bar(self) -> Progress:
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )

    def _log_lines(self, name: str, started: float) -> Advance:
        last = started

        def advance(done: float, total: float | None, text: str) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last < LOG_INTERVAL or not done:
                return
            last = now
            share = ""
            if total:
                left = (now - started) * (total - done) / done
                share = f" {done / total:.0%}, about {left:.0f} s left;"
            self.say(f"  {name}:{share} {text}".rstrip(" ;"))

        return advance


class Silent(Reporter):
    """Says nothing: for use from Python and in tests."""

    def __init__(self) -> None:
        super().__init__(Console(quiet=True))

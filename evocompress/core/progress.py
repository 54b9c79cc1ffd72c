"""Progress that is a live bar on a terminal and a few plain lines in a log file."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from evocompress.core.foreign_text import printable
from evocompress.core.regular import check_regular
from evocompress.core.terminal import shown

Advance = Callable[[float, float | None, str], None]
"""Called with (done, total, text); the total is ``None`` where it is not known."""

Told = Callable[[float, float, str], None]
"""Called with (done, total, text)."""

LOG = logging.getLogger("evocompress")

LOG_INTERVAL = 15.0
"""Seconds between two lines of one stage in a log file."""


class _LogFile(logging.FileHandler):
    """Goes without a line that the disk does not take: results matter, and name the problem."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Says nothing, where logging would print a traceback for each line."""


class Reporter:
    """Says what a run is doing: on the console, and in the run's log file once there is one."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)

    def log_to(self, path: Path) -> None:
        """From now on also writes lines, and warnings of the package, to a file."""
        if not path.is_char_device():  # such as /dev/null; a pipe would be waited for
            check_regular(path)
        handler = _LogFile(path, encoding="utf-8")
        handler.setFormatter(_Harmless("%(asctime)s %(message)s"))
        warnings = logging.StreamHandler()
        warnings.setFormatter(_Harmless("%(message)s"))
        warnings.setLevel(logging.WARNING)
        LOG.handlers = [handler, warnings]
        LOG.setLevel(logging.INFO)

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(shown(text), soft_wrap=True)
        LOG.info(text)

    @contextmanager
    def stage(self, name: str) -> Iterator[Advance]:
        """A stage with a beginning and an end.

        Yields:
            A function to call as the work goes on.
        """
        started = time.monotonic()
        if self.console.is_terminal:
            LOG.info("%s ...", name)
            with self._bar() as bar:
                task = bar.add_task(printable(name), total=None, text="")
                lines = self._lines(name, started, LOG.info)

                def advance(done: float, total: float | None, text: str) -> None:
                    bar.update(task, completed=done, total=total, text=printable(text))
                    lines(done, total, text)

                yield advance
        else:
            self.say(f"{name} ...")
            yield self._lines(name, started, self.say)
        self.say(f"{name}: {time.monotonic() - started:.1f} s")

    def _bar(self) -> Progress:
        return Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[text]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )

    @staticmethod
    def _lines(name: str, started: float, say: Callable[[str], None]) -> Advance:
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
            say(f"  {name}:{share} {text}".rstrip(" ;"))

        return advance


class _Harmless(logging.Formatter):
    """Writes out the control characters of a message, which may quote anything."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        return printable(super().format(record))


class Silent(Reporter):
    """Says nothing: for use from Python and in tests."""

    def __init__(self) -> None:
        super().__init__(Console(quiet=True))


def tell_nobody(done: float, total: float, text: str) -> None:
    """Takes the place of what is told about progress."""

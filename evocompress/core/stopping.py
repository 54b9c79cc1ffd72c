"""Being told to stop: Ctrl-C, SIGTERM and SIGHUP end a command in the same way."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS: dict[int, str] = {
    signal.SIGINT: "interrupted",
    signal.SIGTERM: "terminated",
    signal.SIGHUP: "hung up",
}
"""The signals, and what is said about them."""

_AGAIN_SECONDS = 0.1
"""After which an interrupt that was lost comes again."""

_came: int | None = None


def stop_on_signals() -> None:
    """From now on the signals raise `KeyboardInterrupt`, unless they are ignored, as by nohup."""
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _stop)
    sys.unraisablehook = _lost


@contextmanager
def signals_kept() -> Iterator[None]:
    """Takes the signals back from a library that takes them, where they raise an interrupt."""
    ours = [number for number in SIGNALS if signal.getsignal(number) == _stop]
    yield
    for number in ours:
        signal.signal(number, _stop)


def signal_that_came() -> int | None:
    """The signal that ended the command, if one did."""
    return _came


def _stop(number: int, frame: FrameType | None) -> None:
    global _came
    _came = number
    raise KeyboardInterrupt


def _lost(unraisable: sys.UnraisableHookArgs) -> None:
    """Sends a signal again whose interrupt came where none can be raised, as in a ``__del__``."""
    if _came is None or unraisable.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(unraisable)
        return
    came = _came
    signal.signal(signal.SIGALRM, lambda number, frame: _stop(came, frame))
    signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)

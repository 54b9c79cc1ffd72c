"""One command of the command line, run in a forked process that can be attacked."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

HANGS = 120
"""Seconds after which a command on a tiny model is taken for hanging."""

MEMORY = 12 * 2**30
"""Bytes of address space beyond which a command is taken for swelling."""

ENDED_BY = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
"""Exit status after a signal that is handled, as shells have it."""

Hook = Callable[[], None]


@dataclass(frozen=True)
class Done:
    """How a command ended.

    Attributes:
        words: The command.
        code: Exit status; negative is the signal that ended it.
        output: What it printed, standard output and error together.
        hung: Whether it was ended because it took too long.
    """

    words: tuple[str, ...]
    code: int
    output: str
    hung: bool = False

    @property
    def errors(self) -> list[str]:
        """The lines that tell the user what is wrong."""
        return [line for line in self.output.splitlines() if line.startswith("error:")]

    @property
    def clean(self) -> bool:
        """Whether it succeeded, or refused in one line."""
        if self.hung or "Traceback (most recent call last)" in self.output or self.code < 0:
            return False
        usage = self.code == 2 and "Usage:" in self.output
        return self.code == 0 or len(self.errors) == 1 or usage

    def __str__(self) -> str:
        how = "hangs" if self.hung else f"ends with {self.code}"
        tail = " / ".join(self.output.strip().splitlines()[-6:])
        return f"{' '.join(self.words)[:300]} {how}: {tail[-700:]}"


class Running:
    """A command that has begun."""

    def __init__(self, words: Sequence[object], root: Path, hook: Hook | None = None) -> None:
        """Begins it.

        Args:
            words: Of the command line, without the program's name.
            root: The folder in which it runs; its output goes to a file beside that.
            hook: Called in the new process before the command.
        """
        self.words = tuple(str(word) for word in words)
        self._output = root.parent / f"{root.name}.{time.monotonic_ns()}.out"
        self._output.touch()  # a process that is killed at once has printed nothing
        sys.stdout.flush()
        sys.stderr.flush()
        self._status: int | None = None
        # In the new process a signal must not unwind what this one is in the middle of.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDED_BY)
        self.pid = os.fork()
        if self.pid == 0:
            _become(self.words, root, self._output, before, hook)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def wait(self, seconds: float = HANGS) -> Done:
        """Waits for its end, and ends it where that takes too long."""
        status = self._wait_for(seconds)
        hung = status is None
        if status is None:
            os.kill(self.pid, signal.SIGKILL)
            status = os.waitpid(self.pid, 0)[1]
        output = self._output.read_text(encoding="utf-8", errors="replace")
        self._output.unlink()
        return Done(self.words, os.waitstatus_to_exitcode(status), output, hung)

    def wait_or(self, seconds: float, works: Callable[[], bool]) -> Done:
        """Waits for its end; once it is at work, and that for a second, it is asked to end."""
        end = time.monotonic() + seconds
        while self._wait_for(0.01) is None and time.monotonic() < end:
            if works():
                if self._wait_for(1.0) is None:
                    os.kill(self.pid, signal.SIGTERM)
                return self.wait(seconds)
        return self.wait(0.0)

    def _wait_for(self, seconds: float) -> int | None:
        """Its wait status, or ``None`` where it has not ended by then."""
        end = time.monotonic() + seconds
        while self._status is None and time.monotonic() < end:
            self._status = self._poll()
            time.sleep(0.005)
        return self._status

    def _poll(self) -> int | None:
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return status if pid else None


def run(
    words: Sequence[object], root: Path, hook: Hook | None = None, seconds: float = HANGS
) -> Done:
    """Runs a command to its end."""
    return Running(words, root, hook).wait(seconds)


def _become(
    words: Sequence[str], root: Path, output: Path, signals: set[int], hook: Hook | None
) -> None:
    """Turns this forked process into the command; never returns."""
    code = 70
    try:
        target = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(target, 1)
        os.dup2(target, 2)
        os.chdir(root)
        signal.pthread_sigmask(signal.SIG_SETMASK, signals)
        os.environ["XDG_CACHE_HOME"] = str(root / "cache")
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        sys.argv = ["evocompress", *words]
        from evocompress.cli import commands

        if hook is not None:
            hook()
        commands.main()
        code = 0
    except SystemExit as stop:
        code = _status(stop)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, ENDED_BY)
        except KeyboardInterrupt:  # one came meanwhile, for which nothing waits
            signal.pthread_sigmask(signal.SIG_BLOCK, ENDED_BY)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _status(stop: SystemExit) -> int:
    """The exit status that the interpreter makes of a SystemExit."""
    if stop.code is None:
        return 0
    if isinstance(stop.code, int):
        return stop.code & 0xFF
    print(stop.code, file=sys.stderr)
    return 1


WRITES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink")


def writes_counted(count: Path, root: Path) -> Hook:
    """A hook that writes one byte to a file for each change that a command makes below a folder."""

    def seen(_: int) -> None:
        with open(os.open(count, os.O_CREAT | os.O_WRONLY | os.O_APPEND), "ab") as file:
            file.write(b".")

    return _audited(root, seen)


def stopped_at(number: int, root: Path, with_signal: int = signal.SIGKILL) -> Hook:
    """A hook that sends a command a signal just before its `number`-th change below a folder."""

    def seen(change: int) -> None:
        if change == number:
            os.kill(os.getpid(), with_signal)

    return _audited(root, seen)


def _audited(root: Path, seen: Callable[[int], None]) -> Hook:
    changes = 0

    def audit(event: str, values: tuple[object, ...]) -> None:
        nonlocal changes
        if not (event in WRITES or (event == "open" and _writes(values))):
            return
        path = values[0]
        if isinstance(path, str | os.PathLike) and Path(os.path.abspath(path)).is_relative_to(root):
            changes += 1
            seen(changes)

    return lambda: sys.addaudithook(audit)


def _writes(values: tuple[object, ...]) -> bool:
    """Whether the values of an audited ``open`` say that the file is written."""
    _, mode, flags = values
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def copy(source: Path, target: Path) -> None:
    """Lays a folder anew as a copy of another."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, symlinks=True)

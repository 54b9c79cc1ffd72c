"""Signals at any time, and a kill just before any change on disk; then the command again."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

from numpy.random import Generator

from tests.torture.command import ENDED_BY, Done, stopped_at, writes_counted
from tests.torture.scene import STAGES, Scene, files_of
from tests.torture.verdict import Verdict, judged, left_over

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def at_changes(scene: Scene, rng: Generator) -> Iterator[Verdict]:
    """Kills a command just before one of the changes that it makes on disk."""
    changes = {stage: _changes(scene, stage) for stage in STAGES}
    while True:
        stage = str(rng.choice(list(STAGES)))
        number = int(rng.integers(1, changes[stage] + 1))
        with_signal = SIGNALS[int(rng.choice(4, p=(0.6, 0.2, 0.1, 0.1)))]
        scene.lay(scene.before(stage))
        done = scene.run(stage, stopped_at(number, scene.root, with_signal))
        detail = f"{scene.name}: {with_signal.name} before change {number} of {stage}"
        yield _resumed(
            scene, stage, done, with_signal, f"{with_signal.name} before a write", detail
        )


def at_times(scene: Scene, rng: Generator) -> Iterator[Verdict]:
    """Sends a command a signal after a random time, now and then two of them."""
    lasting = {stage: _seconds(scene, stage) for stage in STAGES}
    while True:
        stage = str(rng.choice(list(STAGES)))
        with_signal = SIGNALS[int(rng.integers(4))]
        scene.lay(scene.before(stage))
        running = scene.begin(stage)
        wait = float(rng.uniform(0, lasting[stage]))
        time.sleep(wait)
        os.kill(running.pid, with_signal)
        if rng.uniform() < 0.3:
            time.sleep(float(rng.uniform(0, 0.02)))
            os.kill(running.pid, with_signal)
        done = running.wait()
        detail = f"{scene.name}: {with_signal.name} after {wait:.3f} s of {stage}"
        yield _resumed(scene, stage, done, with_signal, f"{with_signal.name} at any time", detail)


def _resumed(
    scene: Scene, stage: str, done: Done, with_signal: signal.Signals, fault: str, detail: str
) -> Verdict:
    """The verdict on a command after a signal: how it ended, and what giving it again brings."""
    how = done
    if with_signal is signal.SIGKILL and done.code == -signal.SIGKILL:
        how = Done(done.words, 0, done.output)
    elif done.code == ENDED_BY.get(with_signal) and len(done.output.splitlines()) < 60:
        how = Done(done.words, 0, done.output, done.hung)
        if "Traceback" not in done.output and (left := _temporaries(scene)):
            return Verdict(fault, wrong=f"left behind: {', '.join(left)}", detail=detail)
    again = scene.run(stage)
    return judged(fault, how, again, left_over(scene, stage), detail)


def _temporaries(scene: Scene) -> list[str]:
    return [name for name in files_of(scene.root) if ".tmp" in name or "/tmp" in name]


def _changes(scene: Scene, stage: str) -> int:
    scene.lay(scene.before(stage))
    count = scene.root.parent / "changes"
    scene.run(stage, writes_counted(count, scene.root))
    number = count.stat().st_size
    count.unlink()
    return number


def _seconds(scene: Scene, stage: str) -> float:
    scene.lay(scene.before(stage))
    begun = time.monotonic()
    scene.run(stage)
    return time.monotonic() - begun

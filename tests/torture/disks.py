"""Disks that are full, small, or not to be written."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from collections.abc import Iterator

from numpy.random import Generator

from tests.torture.command import Done, run
from tests.torture.scene import STAGES, Scene
from tests.torture.verdict import Verdict, judged, left_over

NOBODY = 65534


def limited(scene: Scene, rng: Generator) -> Iterator[Verdict]:
    """Runs commands that cannot write as much as they want, and then again as they can."""
    ways = [_largest_file] + ([_read_only, _full] if os.geteuid() == 0 else [])
    while True:
        stage = str(rng.choice(list(STAGES)))
        yield ways[int(rng.integers(len(ways)))](scene, stage, rng)


def _largest_file(scene: Scene, stage: str, rng: Generator) -> Verdict:
    """A limit on the size of files, as quotas and file systems have."""
    most = int(2 ** rng.uniform(6, 20))

    def hook() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    scene.lay(scene.before(stage))
    # What the command says goes to a file as well, which the limit would cut.
    done = run(STAGES[stage], scene.root, hook)
    return _again(scene, stage, done, "file size limited", f"files of at most {most} bytes")


def _full(scene: Scene, stage: str, rng: Generator) -> Verdict:
    """A file system of its own that is full after some bytes more."""
    scene.lay(scene.before(stage))
    used = sum(p.stat().st_blocks * 512 for p in scene.root.rglob("*") if p.is_file())
    more = int(2 ** rng.uniform(10, 21))
    kept = scene.root.with_name("aside")
    scene.root.rename(kept)
    scene.root.mkdir()
    size = f"size={used + more + 2**16}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", scene.root], check=True)
    try:
        subprocess.run(["cp", "-a", f"{kept}/.", scene.root], check=False, capture_output=True)
        done = run(STAGES[stage], scene.root)
        subprocess.run(["mount", "-o", "remount,size=1g", scene.root], check=True)
        verdict = _again(scene, stage, done, "disk full", f"{more} bytes free")
    finally:
        subprocess.run(["umount", scene.root], check=True)
        scene.root.rmdir()
        kept.rename(scene.root)
    return verdict


def _read_only(scene: Scene, stage: str, rng: Generator) -> Verdict:
    """Folders that another user owns: they can be read and not written."""
    scene.lay(scene.before(stage))
    done = run(STAGES[stage], scene.root, lambda: os.setuid(NOBODY))
    if done.code == 0:
        done = Done(done.words, 0, f"{done.output}\nwrote although it may not", hung=True)
    return _again(scene, stage, done, "read-only", "as another user")


def _again(scene: Scene, stage: str, done: Done, fault: str, how: str) -> Verdict:
    """The verdict after the same command without the limit."""
    again = None if done.code == 0 and not done.hung else scene.run(stage)
    detail = f"{scene.name}: {stage} with {how}"
    return judged(fault, done, again, left_over(scene, stage), detail)

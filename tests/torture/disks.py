"""Disks that are full, small, or not to be written."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from numpy.random import Generator

from tests.torture.command import Done, run
from tests.torture.scene import STAGES, Scene
from tests.torture.verdict import Verdict, judged, left_over


def limited(scene: Scene, rng: Generator) -> Iterator[Verdict]:
    """Runs commands that cannot write as much as they want, and then again as they can."""
    # Only root can mount a file system of its own.
    ways = [_largest_file, *((_read_only, _full) if os.geteuid() == 0 else ())]
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
    more = int(2 ** rng.uniform(10, 21))
    with _own_file_system(scene, stage, more) as remount:
        done = scene.run(stage)
        remount("size=1g")
        return _again(scene, stage, done, "disk full", f"{more} bytes free")


def _read_only(scene: Scene, stage: str, rng: Generator) -> Verdict:
    """A file system of its own that can only be read."""
    with _own_file_system(scene, stage, 2**20) as remount:
        remount("ro")
        done = scene.run(stage)
        remount("rw,size=1g")
        return _again(scene, stage, done, "read-only", "a read-only disk")


@contextmanager
def _own_file_system(scene: Scene, stage: str, more: int) -> Iterator[Callable[[str], None]]:
    """Has the folder, as before a stage, on a disk in memory with some bytes more.

    Yields:
        Mounts it again with other options.
    """
    scene.lay(scene.before(stage))
    used = sum(p.stat().st_blocks * 512 for p in scene.root.rglob("*") if p.is_file())
    kept = scene.root.with_name("aside")
    scene.root.rename(kept)
    scene.root.mkdir()

    def mount(*words: object) -> None:
        subprocess.run(["mount", *map(str, words), scene.root], check=True)

    mount("-t", "tmpfs", "-o", f"size={used + more + 2**16}", "tmpfs")
    try:
        shutil.copytree(kept, scene.root, symlinks=True, dirs_exist_ok=True)
        yield lambda options: mount("-o", f"remount,{options}")
    finally:
        subprocess.run(["umount", scene.root], check=True)
        scene.root.rmdir()
        kept.rename(scene.root)


def _again(scene: Scene, stage: str, done: Done, fault: str, how: str) -> Verdict:
    """The verdict after the same command without the limit."""
    again = None if done.code == 0 and not done.hung else scene.run(stage)
    detail = f"{scene.name}: {stage} with {how}"
    return judged(fault, done, again, left_over(scene, stage), detail)

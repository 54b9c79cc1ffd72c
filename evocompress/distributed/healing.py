"""Healing in a task on Ray, with a GPU of its own where the run computes on one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from evocompress.core.config import RunConfig
from evocompress.core.progress import Reporter
from evocompress.distributed.cluster import enter
from evocompress.distributed.exclusive_task import ExclusiveTask, Tell, run_alone, run_beside
from evocompress.pipeline.resolve import threads_of
from evocompress.pipeline.run_folder import RunFolder


def heal_on_ray(
    config: RunConfig,
    path: Path,
    overrides: Sequence[str],
    resume: bool,
    force: bool,
    reporter: Reporter,
) -> None:
    """Heals the checkpoint of a run whose folder the nodes see under the same path.

    The task locks the folder and writes there what a healing in this process would; a process
    that dies leaves what `--resume` goes on from. Healings that are averaged are tasks of their
    own, as many at a time as the cluster has room for, unless their teacher is to be trained first.
    """
    here = [*overrides, "executor=local", f"threads={threads_of(config)}"]
    home, place = os.getcwd(), str(path.absolute())

    def task(name: str, resume: bool, member: int | None = None) -> ExclusiveTask:
        job = partial(_heal, home, place, here, resume, force, member)
        return ExclusiveTask(job, name=name, quiet_node=False, again="go on with --resume")

    count, alone = config.heal.average, config.heal.adapt_teacher is not None
    if count > 1 and config.heal.tokens != "auto" and not alone:
        with RunFolder(path).locked():
            members = [task(f"healing {n + 1} of {count}", resume, n) for n in range(count)]
            run_beside(config, members, reporter.say, reporter.say)
        resume = True  # the healings are there, and are averaged
    run_alone(config, task("healing", resume), reporter.say, reporter.say)


def _heal(
    home: str,
    path: str,
    overrides: Sequence[str],
    resume: bool,
    force: bool,
    member: int | None,
    tell: Tell,
) -> None:
    """Heals in this process."""
    import ray

    from evocompress.pipeline import stages

    # A working_dir was brought along by Ray, which has entered it already.
    if not ray.get_runtime_context().runtime_env.get("working_dir"):
        enter(home)
    context = stages.to_be_healed(path, overrides, _Relay(tell))
    stages.heal(context, resume=resume, force=force, member=member)


class _Relay(Reporter):
    """Says everything to the driver, which also writes it to the run's log file."""

    def __init__(self, tell: Tell) -> None:
        super().__init__(Console(quiet=True, force_terminal=False))
        self._tell = tell

    def log_to(self, path: Path) -> None:
        """Does nothing, see above."""

    def say(self, text: str) -> None:
        """One line."""
        self._tell(text)

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
from evocompress.distributed.exclusive_task import ExclusiveTask, Tell, run_alone
from evocompress.pipeline.resolve import threads_of


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
    that dies leaves what `--resume` goes on from.
    """
    here = [*overrides, "executor=local", f"threads={threads_of(config)}"]
    job = partial(_heal, os.getcwd(), str(path.absolute()), here, resume, force)
    task = ExclusiveTask(job, name="healing", quiet_node=False, again="go on with --resume")
    run_alone(config, task, reporter.say, reporter.say)


def _heal(
    home: str, path: str, overrides: Sequence[str], resume: bool, force: bool, tell: Tell
) -> None:
    """Heals in this process."""
    import ray

    from evocompress.pipeline import stages

    # A working_dir was brought along by Ray, which has entered it already.
    if not ray.get_runtime_context().runtime_env.get("working_dir"):
        enter(home)
    context = stages.to_be_healed(path, overrides, _Relay(tell))
    stages.heal(context, resume=resume, force=force)


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

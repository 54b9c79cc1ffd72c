"""Healing in a task on Ray, with a GPU of its own where the run computes on one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from evocompress.core.config import RunConfig
from evocompress.core.errors import ConfigError, ModelError
from evocompress.core.processes import process_count
from evocompress.core.progress import Reporter
from evocompress.distributed.cluster import enter
from evocompress.distributed.exclusive_task import ExclusiveTask, Tell, run_alone, run_beside
from evocompress.models.loading import LoadedModel
from evocompress.pipeline.context import RunContext
from evocompress.pipeline.journal_memory import ShortHealing
from evocompress.pipeline.resolve import threads_of
from evocompress.pipeline.run_folder import RunFolder
from evocompress.pipeline.short_healing import HealEach, ShortRecipe, heal_each


def heal_on_ray(context: RunContext, overrides: Sequence[str], resume: bool, force: bool) -> None:
    """Heals the checkpoint of a run whose folder the nodes see under the same path.

    The task locks the folder and writes there what a healing in this process would; a process
    that dies leaves what `--resume` goes on from. Healings that are averaged are tasks of their
    own, as many at a time as the cluster has room for, unless their teacher is to be trained first.

    Raises:
        ConfigError: Several processes were started.
    """
    if process_count() > 1:
        raise ConfigError("with Ray a healing is one task: start one process, or leave out --ray")
    config, path, reporter = context.config, context.folder.path, context.reporter
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
    from evocompress.pipeline import stages

    _enter(home)
    context = stages.to_be_healed(path, overrides, _Relay(tell))
    stages.heal(context, resume=resume, force=force, member=member)


def _enter(home: str) -> None:
    """Goes to the driver's folder, unless Ray brought one along, which it has entered already."""
    import ray

    if not ray.get_runtime_context().runtime_env.get("working_dir"):
        enter(home)


def ray_short_healing(config: RunConfig, path: Path, reporter: Reporter) -> HealEach:
    """What heals the last candidates of the run in a folder that the nodes see, each in a task.

    The checkpoints are in the run's folder, and the healings are written beside them; those that
    are there go on after a kill.
    """
    here = config.model_copy(update={"executor": "local", "threads": threads_of(config)})
    home = os.getcwd()

    def each(
        loaded: LoadedModel, students: Sequence[Path], recipe: ShortRecipe, force: bool
    ) -> Iterator[ShortHealing]:
        def task(number: int, student: Path) -> ExclusiveTask:
            place = (str(path.absolute()), str(student.absolute()))
            job = partial(_heal_short, home, here, loaded.fingerprint, place, recipe, force)
            name = f"short healing {number} of {len(students)}"
            return ExclusiveTask(job, name=name, quiet_node=False, again="go on with --resume")

        tasks = [task(number, student) for number, student in enumerate(students, start=1)]
        yield from run_beside(config, tasks, reporter.say, reporter.say)

    return each


def _heal_short(
    home: str,
    config: RunConfig,
    fingerprint: str,
    place: tuple[str, str],
    recipe: ShortRecipe,
    force: bool,
    tell: Tell,
) -> ShortHealing:
    """Heals one candidate in this process, which loads the dense model."""
    _enter(home)
    path, student = map(Path, place)
    reporter = _Relay(tell)
    loaded = RunContext(config, RunFolder(path), reporter, finished=True).loaded
    if loaded.fingerprint != fingerprint:
        raise ModelError(
            f"a task has another model at {config.model.source} than the search: give all nodes "
            "the same model"
        )
    return next(heal_each(config, reporter, loaded, [student], recipe, force))


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

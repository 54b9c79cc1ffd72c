"""A trial of a sweep as Ray Tune runs it: an ordinary search in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evocompress.core.env_vars import EnvVars
from evocompress.core.errors import RunError, one_line
from evocompress.distributed.cluster import enter
from evocompress.pipeline.run_folder import RunFolder
from evocompress.pipeline.sweep.config import Range, SweepConfig
from evocompress.pipeline.sweep.folder import SweepFolder
from evocompress.pipeline.sweep.outcome import is_finished
from evocompress.pipeline.sweep.record import Clock
from evocompress.pipeline.sweep.trials import Settings, Trial, trial_of

if TYPE_CHECKING:
    from evocompress.pipeline.loop import Progress

VALUE = "value"
"""What Tune minimises: the winner's value, or the best one so far."""

TOKENS = "tokens"
"""By what early stopping measures time: requested tokens."""


@dataclass(frozen=True)
class TrialTask:
    """What all trials of a sweep are made from.

    Attributes:
        sweep: The sweep, JSON.
        home: Folder from which relative paths lead.
        session: Names this start of the sweep.
        env_vars: Environment variables of the trials' processes.
        force: Whether trials go on under other circumstances than before.
    """

    sweep: str
    home: str
    session: str
    env_vars: EnvVars = EnvVars()
    force: bool = False


def run_trial(params: Mapping[str, Any], task: TrialTask) -> None:
    """Makes the run of a trial, or goes on with it from its journal; reports its value to Tune.

    Raises:
        RunError: The trial failed.
    """
    from ray import tune

    task.env_vars.enter()
    enter(task.home)
    sweep = SweepConfig.model_validate_json(task.sweep)
    folder = SweepFolder(sweep.folder)
    trial = trial_of(sweep, settings_of(sweep, params))
    with folder.records.turn(trial.name):
        known = folder.records.read(trial.name)
        if known and known.failed and known.session == task.session:
            # Tune tries again whatever ended badly; that helps where a process died only.
            raise RunError(known.failed)
        clock = Clock(folder.records, trial)
        try:
            _search(trial, clock, tune.report if sweep.asha else None, task.force)
        except Exception as error:
            clock.keep(failed=one_line(error), session=task.session)
            raise RunError(one_line(error)) from None
        except SystemExit:
            # So a report ends that Tune answers by stopping the trial.
            clock.keep()
            raise
        finally:
            _free_memory()
        clock.keep()
    tune.report({VALUE: RunFolder(trial.config.folder).read_winner().value})


def settings_of(sweep: SweepConfig, params: Mapping[str, Any]) -> Settings:
    """What the parameters of Tune stand for: places in a list or among steps, or numbers."""
    return {key: _value(sweep, key, params[key]) for key in sweep.vary}


def _value(sweep: SweepConfig, key: str, chosen: Any) -> Any:
    axis = sweep.vary[key]
    if not isinstance(axis, Range):
        return axis[chosen]
    return axis.values()[chosen] if sweep.mode == "grid" or axis.step is not None else chosen


def _free_memory() -> None:
    """Leaves nothing of a trial to the next one in this process, nor on the device."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _search(
    trial: Trial,
    clock: Clock,
    report: Callable[[dict[str, Any]], None] | None,
    force: bool,
) -> None:
    """Searches, unless that was done, telling every step to who wants to know."""
    if is_finished(RunFolder(trial.config.folder)):
        return
    from evocompress.distributed import backend_of
    from evocompress.pipeline import stages

    last = -1

    def listener(progress: Progress) -> None:
        nonlocal last
        clock.tick()
        step = progress.step
        if report and step and step.step > last and step.value is not None:
            last = step.step
            report({VALUE: step.value, TOKENS: step.requested})

    backend = backend_of(trial.config)
    stages.search(trial.config, backend, resume=True, force=force, listener=listener)

"""Sweeps on Ray Tune, which says which trials run, and where and when.

What a trial has found is in its own folder; of that Tune knows a number only. Its own state, with
which `Tuner.restore` goes on, is pickled by it below the sweep's folder; losing it loses no work.
"""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

from evocompress.core.env_vars import env_vars_of
from evocompress.core.errors import ConfigError, EvoCompressError, RunError, one_line
from evocompress.core.files import read_json, write_text
from evocompress.core.progress import Reporter
from evocompress.distributed.cluster import gpus_each
from evocompress.distributed.signature import is_own, sign
from evocompress.distributed.sweep_cluster import check_trials_fit, start_for_trials
from evocompress.distributed.trial import TrialTask, run_trial, settings_of
from evocompress.distributed.tuner import new_tuner
from evocompress.distributed.watch import watching
from evocompress.pipeline.run_folder import RunFolder
from evocompress.pipeline.sweep.config import SweepConfig
from evocompress.pipeline.sweep.folder import SweepFolder, begin_sweep, check_sweep
from evocompress.pipeline.sweep.outcome import Status, is_finished, outcomes
from evocompress.pipeline.sweep.record import new_record
from evocompress.pipeline.sweep.trials import size_of, trial_of

QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
}
"""Environment variables without which Tune prints tables, writes logs and catches Ctrl-C."""

LONGEST_REASON = 200
"""Letters of what Ray says about a death."""

WORKERS = "workers"
"""File beside Tune's state with the `ray.workers` that it was begun with."""

STATE = "experiment_state-*.json"
"""Files of Tune without which it cannot go on."""


def run_sweep(
    sweep: SweepConfig,
    folder: SweepFolder,
    resume: bool,
    reporter: Reporter,
    *,
    force: bool = False,
) -> None:
    """Runs all trials of a checked sweep that are not finished.

    The folder is made once it is known that trials can run. `force`: they go on under other
    circumstances than those that they were begun under.

    Raises:
        ConfigError: Ray or Optuna is not installed, there is no such cluster, or no room for a
            trial.
        RunError: Tune came to an untimely end, or another process makes this sweep or has begun
            another one in its folder.
    """
    if sweep.mode == "grid" and not _has(sweep, folder, "failed", "unfinished", "waiting"):
        return
    for key, value in QUIET.items():
        os.environ.setdefault(key, value)
    if sweep.mode == "optuna" and find_spec("optuna") is None:
        raise ConfigError(
            "mode=optuna needs a package that is not installed: pip install 'evocompress[optuna]'"
        )
    env_vars_of(sweep.ray)
    stop = start_for_trials(sweep.ray)
    try:
        for name in ("ray", "ray.tune"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        check_trials_fit(sweep.ray, reporter)
        with folder.locked():
            check_sweep(sweep, resume)  # again: until now another process could begin it
            begin_sweep(folder, sweep)
            reporter.log_to(folder.log)
            with watching(sweep, folder, reporter):
                _run(sweep, folder, reporter, force)
    finally:
        stop()


def _run(sweep: SweepConfig, folder: SweepFolder, reporter: Reporter, force: bool) -> None:
    """Goes on with what Tune left in the folder; what is then still open it runs anew."""
    trainable = _trainable(sweep, force)
    if folder.tune.exists():
        why = _unusable(sweep, folder.tune) or _restored(sweep, folder, trainable)
        if not why:
            return
        reporter.say(f"Tune begins anew ({why}); what trials have done is in their journals")
        shutil.rmtree(folder.tune)
    sign(folder.tune)
    write_text(folder.tune / WORKERS, str(sweep.ray.workers))
    tuner = new_tuner(sweep, folder.tune.absolute(), trainable)
    try:
        results = tuner.fit()
    except EvoCompressError:
        raise
    except Exception as error:
        raise RunError(f"Ray Tune gave up ({one_line(error)}): go on with --resume") from None
    _conclude(sweep, folder, results)


def _unusable(sweep: SweepConfig, place: Path) -> str:
    """Why Tune's state cannot be restored; empty where it can."""
    if not is_own(place):
        return f"{place} was not written here"
    newest = max(place.glob(STATE), default=None)
    if newest is None or not (place / "tuner.pkl").exists():
        return "it had not yet written down its state"
    try:
        read_json(newest)
    except RunError as error:
        return one_line(error)
    workers = place / WORKERS
    # A restored Tune runs as many trials at a time as before.
    if not workers.exists() or workers.read_text() != str(sweep.ray.workers):
        return "ray.workers is another one"
    return ""


def _restored(sweep: SweepConfig, folder: SweepFolder, trainable: Any) -> str:
    """Has Tune go on from its state; says why trials are left nevertheless, if any are."""
    from ray import tune

    try:
        tuner = tune.Tuner.restore(str(folder.tune.absolute()), trainable, resume_errored=True)
        results = tuner.fit()
    except EvoCompressError:
        raise
    except Exception as error:  # whatever a file that was cut off leads to
        return f"its state is damaged: {one_line(error)}"
    _conclude(sweep, folder, results)
    # Where it cannot read its state Tune may begin with fewer trials; and it takes trials for
    # finished whose folders were deleted.
    if len(results) < size_of(sweep) or _has(sweep, folder, "unfinished", "waiting"):
        return "its state lacks trials"
    return ""


def _trainable(sweep: SweepConfig, force: bool) -> Any:
    """What Tune runs for each trial, and what it needs."""
    from ray import tune

    env_vars = env_vars_of(sweep.ray)
    task = TrialTask(sweep.model_dump_json(), os.getcwd(), uuid4().hex, env_vars, force)
    needs = {"cpu": sweep.ray.cpus, "gpu": gpus_each(sweep.ray)}
    return tune.with_resources(tune.with_parameters(run_trial, task=task), needs)


def _conclude(sweep: SweepConfig, folder: SweepFolder, results: Any) -> None:
    """Records what only Tune knows: whose processes died, and who was stopped early."""
    for result in results:
        trial = trial_of(sweep, settings_of(sweep, result.config))
        known = folder.records.read(trial.name)
        if (known and known.failed) or is_finished(RunFolder(folder.path / trial.name)):
            continue
        if result.error is not None:
            # Without a record it failed before its search began.
            failed = replace(known or new_record(trial), failed=_reason(result.error))
            folder.records.keep(trial.name, failed)
        elif known and sweep.asha:
            folder.records.keep(trial.name, replace(known, stopped=True))


def _reason(error: Exception) -> str:
    """Why a trial failed that could not say it itself."""
    cause = getattr(error, "cause", None)  # of what Ray found raised in a process
    if isinstance(cause, EvoCompressError):
        return one_line(cause)
    what = "it failed" if isinstance(cause, Exception) else "its process died"
    return f"{what} ({one_line(cause or error)[:LONGEST_REASON]})"


def _has(sweep: SweepConfig, folder: SweepFolder, *statuses: Status) -> bool:
    """Whether any of the known trials has come to one of these."""
    return any(found.status in statuses for found in outcomes(folder, sweep))

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

from evocompress.config import RayConfig
from evocompress.distributed.cluster import gpus_each, start
from evocompress.distributed.origin import is_own, sign
from evocompress.distributed.trial import VALUE, Task, run_trial, settings_of
from evocompress.distributed.watch import watching
from evocompress.errors import ConfigError, RunError, one_line
from evocompress.progress import Reporter
from evocompress.run_folder import RunFolder
from evocompress.sweep.config import Range, SweepConfig
from evocompress.sweep.folder import SweepFolder, begin
from evocompress.sweep.outcome import Status, is_finished, outcomes
from evocompress.sweep.trials import trial_of

QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
}
"""Environment variables without which Tune prints tables, writes logs and catches Ctrl-C."""

DEATHS = 3
"""How often the process of a trial may die before the trial has failed."""

LONGEST_REASON = 200
"""Letters of what Ray says about a death."""

STATE = "experiment_state-*.json"
"""Files of Tune without which it cannot go on."""


def run_sweep(sweep: SweepConfig, folder: SweepFolder, reporter: Reporter) -> None:
    """Runs all trials that are not finished.

    Args:
        sweep: Checked.
        folder: Its folder, which is made once it is known that trials can run.
        reporter: Told about progress.

    Raises:
        ConfigError: Ray or Optuna is not installed, there is no such cluster, or no room for a
            trial.
        RunError: Tune came to an untimely end, or another process makes this sweep.
    """
    if sweep.mode == "grid" and not _has(sweep, folder, "failed", "unfinished", "waiting"):
        return
    for key, value in QUIET.items():
        os.environ.setdefault(key, value)
    if sweep.mode == "optuna" and find_spec("optuna") is None:
        raise ConfigError(
            "mode=optuna needs a package that is not installed: pip install 'evocompress[optuna]'"
        )
    stop = start(sweep.ray)
    try:
        for name in ("ray", "ray.tune"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        _check_room(sweep.ray)
        begin(folder, sweep)
        with folder.locked():
            reporter.log_to(folder.log)
            with watching(sweep, folder, reporter):
                _run(sweep, folder, reporter)
    finally:
        stop()


def _run(sweep: SweepConfig, folder: SweepFolder, reporter: Reporter) -> None:
    """Goes on with what Tune left in the folder; what is then still open it runs anew."""
    trainable = _trainable(sweep)
    if any(folder.tune.glob(STATE)) and is_own(folder.tune):
        from ray import tune

        place = str(folder.tune.absolute())
        try:
            restored = tune.Tuner.restore(place, trainable, resume_errored=True)
            _conclude(sweep, folder, restored.fit())
        except Exception as error:  # whatever a file that was cut off leads to
            reporter.say(f"Tune's own state in {place} is of no use ({one_line(error)})")
        # Tune may hold a trial for finished whose folder was deleted.
        if not _has(sweep, folder, "unfinished", "waiting"):
            return
    if folder.tune.exists():
        reporter.say("Tune begins anew; what trials have done is in their journals")
        shutil.rmtree(folder.tune)
    sign(folder.tune)
    try:
        _conclude(sweep, folder, _new_tuner(sweep, folder.tune.absolute(), trainable).fit())
    except Exception as error:
        raise RunError(f"Ray Tune gave up ({one_line(error)}): go on with --resume") from None


def _check_room(config: RayConfig) -> None:
    """Refuses what no node of the cluster could ever run.

    Raises:
        ConfigError: That many CPUs or GPUs are on no node.
    """
    import ray

    wanted = {"CPU": config.cpus, "GPU": gpus_each(config)}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(node.get(k, 0) >= amount for k, amount in wanted.items()) for node in nodes):
        most = {k: max((node.get(k, 0) for node in nodes), default=0) for k in wanted}
        raise ConfigError(
            f"ray.cpus={wanted['CPU']:g}, ray.gpus={wanted['GPU']:g}: no node has so many (at most "
            f"{most['CPU']:g} CPUs, {most['GPU']:g} GPUs): give a trial less"
        )


def _trainable(sweep: SweepConfig) -> Any:
    """What Tune runs for each trial, and what it needs."""
    from ray import tune

    task = Task(sweep.model_dump_json(), os.getcwd(), uuid4().hex)
    needs = {"cpu": sweep.ray.cpus, "gpu": gpus_each(sweep.ray)}
    return tune.with_resources(tune.with_parameters(run_trial, task=task), needs)


def _new_tuner(sweep: SweepConfig, place: Path, trainable: Any) -> Any:
    from ray import tune

    return tune.Tuner(
        trainable,
        param_space=_params(sweep),
        tune_config=tune.TuneConfig(
            metric=VALUE,
            mode="min",
            search_alg=_optuna(sweep) if sweep.mode == "optuna" else None,
            scheduler=_scheduler(sweep),
            num_samples=sweep.trials or 1,
            max_concurrent_trials=None if sweep.ray.workers == "auto" else sweep.ray.workers,
            # Loading torch takes longer than a small search.
            reuse_actors=True,
            trial_dirname_creator=_folder_name,
        ),
        run_config=tune.RunConfig(
            name=place.name,
            storage_path=str(place.parent),
            failure_config=tune.FailureConfig(max_failures=DEATHS - 1),
            verbose=0,
        ),
    )


def _params(sweep: SweepConfig) -> dict[str, Any]:
    """What Tune chooses from: numbers of ranges, else places in lists."""
    from ray import tune

    if sweep.mode == "grid":
        sizes = {
            key: len(axis.values() if isinstance(axis, Range) else axis)
            for key, axis in sweep.vary.items()
        }
        return {key: tune.grid_search(list(range(size))) for key, size in sizes.items()}
    return {key: _domain(axis) for key, axis in sweep.vary.items()}


def _domain(axis: tuple[Any, ...] | Range) -> Any:
    """The axis as Tune describes it; its whole ranges do not include their end."""
    from ray import tune

    if not isinstance(axis, Range):
        return tune.choice(list(range(len(axis))))
    low, high = axis.low, axis.high
    if axis.whole:
        if axis.log:
            return tune.lograndint(int(low), int(high) + 1)
        if axis.step is None:
            return tune.randint(int(low), int(high) + 1)
        return tune.qrandint(int(low), int(high), int(axis.step))
    if axis.log:
        return tune.loguniform(low, high)
    return tune.uniform(low, high) if axis.step is None else tune.quniform(low, high, axis.step)


def _optuna(sweep: SweepConfig) -> Any:
    """Optuna's TPE as a searcher of Tune."""
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return OptunaSearch(seed=sweep.seed)


def _scheduler(sweep: SweepConfig) -> Any:
    if sweep.asha is None:
        return None
    from evocompress.distributed.halving import GroupedHalving

    return GroupedHalving(sweep)


def _folder_name(trial: Any) -> str:
    """Of Tune's own folder for a trial."""
    return str(trial.trial_id)


def _conclude(sweep: SweepConfig, folder: SweepFolder, results: Any) -> None:
    """Records what only Tune knows: whose processes died, and who was stopped early."""
    for result in results:
        name = trial_of(sweep, settings_of(sweep, result.config)).name
        record = folder.record(name)
        if record is None or record.failed or is_finished(RunFolder(folder.path / name)):
            continue
        if result.error is not None:
            reason = f"its process died ({one_line(result.error)[:LONGEST_REASON]})"
            folder.keep(name, replace(record, failed=reason))
        elif sweep.asha:
            folder.keep(name, replace(record, stopped=True))


def _has(sweep: SweepConfig, folder: SweepFolder, *statuses: Status) -> bool:
    """Whether any of the known trials has come to one of these."""
    return any(found.status in statuses for found in outcomes(folder, sweep))

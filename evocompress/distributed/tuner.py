"""A sweep in the words of Ray Tune."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evocompress.distributed.trial import VALUE
from evocompress.pipeline.sweep.config import Range, SweepConfig

DEATHS = 3
"""How often the process of a trial may die before the trial has failed."""


def new_tuner(sweep: SweepConfig, place: Path, trainable: Any) -> Any:
    """Tune's own driver of a sweep that begins, with its state in the folder `place`.

    `trainable` makes a trial of Tune's parameters, see `settings_of`.
    """
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
    """What Tune chooses from: places in lists and grids, else numbers of ranges."""
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
    if axis.step is not None:
        # Tune's own steps are counted from zero.
        return tune.randint(0, len(axis.values()))
    low, high = axis.low, axis.high
    if axis.whole:
        return (tune.lograndint if axis.log else tune.randint)(int(low), int(high) + 1)
    return (tune.loguniform if axis.log else tune.uniform)(low, high)


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

"""Early stopping of hopeless searches among comparable ones only."""

from __future__ import annotations

from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

from evocompress.distributed.trial import TOKENS, VALUE, settings_of
from evocompress.pipeline.sweep.config import SweepConfig
from evocompress.pipeline.sweep.trials import group_of


class GroupedHalving(FIFOScheduler):
    """One `ASHAScheduler` for each group of trials whose values can be compared."""

    def __init__(self, sweep: SweepConfig) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._sweep = sweep
        self._groups: dict[str, Any] = {}

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """A trial is to be run."""
        self._group(trial).on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Whether a trial that has said how far it is goes on."""
        decision: str = self._group(trial).on_trial_result(tune_controller, trial, result)
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """A trial has come to its end."""
        self._group(trial).on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """A trial that was waiting is not run."""
        self._group(trial).on_trial_remove(tune_controller, trial)

    def _group(self, trial: Any) -> Any:
        key = group_of(settings_of(self._sweep, trial.config))
        if key not in self._groups:
            config = self._sweep.asha
            assert config is not None
            self._groups[key] = ASHAScheduler(
                time_attr=TOKENS,
                metric=VALUE,
                mode="min",
                grace_period=config.grace_tokens,
                max_t=config.max_tokens,
                reduction_factor=config.reduction,
                # Whoever comes to the last rung goes on to the end of its search.
                stop_last_trials=False,
            )
        return self._groups[key]

"""A study of Optuna that is asked for genomes and told their points.

It lives in memory only: a resumed run replays its journal, and the same answers give the same
asks. Importing this module loads Optuna, so only a running search does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.trial import Trial, TrialState, create_trial

from evocompress.core.arrays import Genome
from evocompress.core.pareto import Points
from evocompress.space.space import SearchSpace

_PATIENCE = 20
"""How many proposals of one ask may be known already before the search counts as ended."""


class GenomeStudy:
    """Gives out each feasible genome once, whatever the sampler proposes.

    A proposal that is over the budget, or leaves some of it, is not what is measured. So it is
    told as failed, and what was measured becomes a completed trial of its own. A genome that
    cannot be measured is only a failed trial, of which samplers take no notice.
    """

    def __init__(
        self,
        space: SearchSpace,
        sampler: BaseSampler,
        first: Sequence[Genome],
        complete: Callable[[Genome], Genome],
        *,
        objectives: int = 1,
    ) -> None:
        """Begins an empty study.

        The parameters are the genes that have a choice. The feasible genomes of `first` are given
        out before those that the sampler proposes, and `complete` makes a feasible genome (U,) of
        a proposal. `objectives` is the number of values that are told of each.
        """
        with _quiet():
            self._study = optuna.create_study(sampler=sampler, directions=["minimize"] * objectives)
        self._space = space
        self._first = list(first)
        self._complete = complete
        self._parameters: dict[str, BaseDistribution] = {
            space.units[gene].name: IntDistribution(0, int(space.encoding.sizes[gene]) - 1)
            for gene in choices(space)
        }
        self._points: dict[bytes, list[float] | None] = {}
        self._asked: dict[bytes, list[Trial]] = {}

    def ask(self, count: int) -> list[Genome]:
        """Up to `count` new feasible genomes (U,); none where only known ones are proposed."""
        new: dict[bytes, Genome] = {}
        for _ in range(count + _PATIENCE):
            if len(new) >= count:
                break
            trial = self._study.ask(self._parameters)
            genome = self._first.pop(0) if self._first else self._complete(self._proposed(trial))
            key = genome.tobytes()
            if key in self._points:
                self._close(trial, genome)
            else:
                new[key] = genome
                self._asked.setdefault(key, []).append(trial)
        return list(new.values())

    def tell(self, genomes: Sequence[Genome], points: Points) -> None:
        """The points (N, M) of the genomes (U,) of the last `ask`.

        One with an infinite coordinate could not be measured.
        """
        for genome, point in zip(genomes, points, strict=True):
            key = genome.tobytes()
            values = point.tolist() if np.isfinite(point).all() else None
            self._points[key] = values
            trials = self._asked.pop(key)
            closed = [self._close(trial, genome) for trial in trials]
            if values is not None and TrialState.COMPLETE not in [trial.state for trial in closed]:
                self._study.add_trial(
                    create_trial(
                        params=self._values(genome),
                        distributions=self._parameters,
                        values=values,
                        # Among them is the generation, without which NSGA-II passes it over.
                        system_attrs=closed[0].system_attrs,
                    )
                )

    def _close(self, trial: Trial, genome: Genome) -> optuna.trial.FrozenTrial:
        """Ends a trial: with the genome's values if it is what the trial proposed."""
        values = self._points[genome.tobytes()]
        if values is None or trial.params != self._values(genome):
            return self._study.tell(trial, state=TrialState.FAIL)
        return self._study.tell(trial, values)

    def _proposed(self, trial: Trial) -> Genome:
        genome = np.zeros(len(self._space.units), dtype=np.int64)
        genome[choices(self._space)] = [trial.params[name] for name in self._parameters]
        return genome

    def _values(self, genome: Genome) -> dict[str, int]:
        """The parameters of a genome (U,)."""
        levels = genome[choices(self._space)].tolist()
        return dict(zip(self._parameters, levels, strict=True))


def choices(space: SearchSpace) -> list[int]:
    """The genes that have more than one level."""
    found: list[int] = np.flatnonzero(space.encoding.sizes > 1).tolist()
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Optuna from reporting the study, as there is nothing that a user could do with it."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)

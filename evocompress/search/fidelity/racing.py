"""Races: rivals of the incumbent are measured on ever more tokens, and leave when they lose.

Every rung is a longer part of the same micro-batches, so a survivor pays only for the new ones. All
comparisons are paired, sequence by sequence, with the incumbent: what a text is like cancels out,
and a small gain is seen on few tokens (as in Hoeffding races, Maron & Moore 1994).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf, isfinite

import numpy as np

from evocompress.core.arrays import Floats
from evocompress.core.requests import Evaluate, Request, Result
from evocompress.core.types import Candidate
from evocompress.search.fidelity.rungs import Rung
from evocompress.search.generator_searcher import AskTell

_QUARTILES = 1.349
"""Distance of the quartiles of a normal distribution, in standard deviations."""

_CERTAIN = 2.0
"""Standard errors of a mean difference that are taken for a certain one."""


@dataclass(frozen=True)
class Gap:
    """By how much one candidate is worse than another on the same sequences.

    Attributes:
        mean: Mean difference of the value per position.
        error: Standard error of the mean; infinite where there are too few sequences to tell.
        sequences: How many there were.

    Examples:
        >>> Gap(mean=0.3, error=0.1).hopeless, Gap(mean=0.1, error=0.1).hopeless
        (True, False)
    """

    mean: float
    error: float
    sequences: int = 1

    @property
    def hopeless(self) -> bool:
        """Whether the first candidate is certainly worse."""
        return self.mean - _CERTAIN * self.error > 0 or not isfinite(self.mean)


class Scoreboard:
    """The values of candidates by micro-batch. Failed candidates have none, for ever.

    Examples:
        >>> from evocompress.core.requests import MicroBatchValue
        >>> board, request = Scoreboard(), Evaluate(Candidate(), (0,))
        >>> board.add([Result(request, (MicroBatchValue(0, sums=(3.0, 1.0), counts=(2, 2)),))])
        >>> board.missing(Candidate(), (0, 1)), board.mean(Candidate(), (0,))
        ((1,), 1.0)
    """

    def __init__(self) -> None:
        self._values: dict[str, dict[int, tuple[Floats, Floats]]] = {}
        self._failed: set[str] = set()

    def add(self, results: Iterable[Result]) -> None:
        """Remembers results; censored ones say nothing about their mean and are left out."""
        for result in results:
            key = result.request.candidate.id
            if result.failed is not None:
                self._failed.add(key)
            elif not result.censored:
                known = self._values.setdefault(key, {})
                for value in result.values:
                    known[value.micro_batch] = (np.array(value.sums), np.array(value.counts))

    def missing(self, candidate: Candidate, micro_batches: Sequence[int]) -> tuple[int, ...]:
        """Those of the micro-batches that a candidate was not measured on."""
        known = self._values.get(candidate.id, {})
        return tuple(index for index in micro_batches if index not in known)

    def mean(self, candidate: Candidate, micro_batches: Sequence[int]) -> float:
        """The value per position over some micro-batches; infinity where one is missing."""
        if candidate.id in self._failed or self.missing(candidate, micro_batches):
            return inf
        known = self._values[candidate.id]
        sums = sum(float(known[index][0].sum()) for index in micro_batches)
        return sums / sum(float(known[index][1].sum()) for index in micro_batches)

    def gap(self, candidate: Candidate, other: Candidate, micro_batches: Sequence[int]) -> Gap:
        """The paired difference over micro-batches on which both were measured.

        The mean difference is infinite where the candidate has no value there.
        """
        mean = self.mean(candidate, micro_batches) - self.mean(other, micro_batches)
        if not isfinite(mean):
            return Gap(inf, inf)
        differences = self._means(candidate, micro_batches) - self._means(other, micro_batches)
        count = len(differences)
        if count < 2:
            return Gap(mean, inf)
        return Gap(mean, float(differences.std(ddof=1) / np.sqrt(count)), count)

    def gaps(
        self, candidates: Iterable[Candidate], other: Candidate, micro_batches: Sequence[int]
    ) -> list[Gap]:
        """The gaps to the `other` of all candidates that have a value on the micro-batches."""
        pairs = (self.gap(c, other, micro_batches) for c in candidates if c.id != other.id)
        return [gap for gap in pairs if isfinite(gap.mean)]

    def _means(self, candidate: Candidate, micro_batches: Sequence[int]) -> Floats:
        """The value per position of each sequence (sequences,)."""
        known = self._values[candidate.id]
        return np.concatenate([known[index][0] / known[index][1] for index in micro_batches])


def quartile_deviation(gaps: Sequence[Gap]) -> float:
    """How far gaps lie apart: a standard deviation, for which a few hopeless ones do not count."""
    low, high = np.quantile([gap.mean for gap in gaps], [0.25, 0.75])
    return float(high - low) / _QUARTILES


def deviation(gaps: Sequence[Gap]) -> float:
    """The standard deviation of a difference from sequence to sequence, as a median over gaps."""
    return float(np.median([gap.error * np.sqrt(gap.sequences) for gap in gaps]))


def race(
    board: Scoreboard,
    affords: Callable[[Sequence[Request]], bool],
    incumbent: Candidate,
    rivals: Sequence[Candidate],
    rungs: Sequence[Rung],
    *,
    by_chance: bool = True,
) -> AskTell[tuple[Candidate, tuple[int, ...]]]:
    """The winner: the rival with the lowest mean at the end, if it is lower than the incumbent's.

    Where the tokens do not suffice for a rung, the one before it was the end.

    Args:
        board: The results so far, to which the race adds.
        affords: Whether there are tokens for requests.
        incumbent: Whom the rivals must beat; it is measured on every rung.
        rivals: Those that enter the first rung.
        rungs: Micro-batches of each comparison, and how many rivals go on.
        by_chance: Whether a rival leaves as soon as it is almost certainly worse; otherwise only
            the numbers of survivors decide.

    Returns:
        The winner, and the micro-batches on which it was compared last; none where the tokens
        did not suffice for the first rung.
    """
    left, seen = list(rivals), tuple[int, ...]()
    for rung in rungs:
        entrants = [incumbent, *left]
        missing = ((entrant, board.missing(entrant, rung.micro_batches)) for entrant in entrants)
        requests = [Evaluate(entrant, indices) for entrant, indices in missing if indices]
        if not affords(requests):
            break
        seen = rung.micro_batches
        answers = (yield requests) if requests else []
        board.add(answer for answer in answers if isinstance(answer, Result))
        gaps = {rival.id: board.gap(rival, incumbent, seen) for rival in left}
        left = [rival for rival in left if not (by_chance and gaps[rival.id].hopeless)]
        left = sorted(left, key=lambda rival: gaps[rival.id].mean)[: rung.survivors]
    if seen and left and board.gap(left[0], incumbent, seen).mean < 0:
        return left[0], seen
    return incumbent, seen

"""Times as fractions of the dense model's, which is timed before and after each candidate."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from evocompress.core.types import Candidate
from evocompress.evaluation.profile.timing import Timer

WARM_UP_TURNS = 1

DENSE_MODEL = Candidate()


@dataclass(frozen=True)
class Ratios:
    """Candidates' times as fractions of the dense model's.

    Attributes:
        dense: Seconds of the dense model, the median of all its runs.
        medians: For each candidate the median over the turns.
        spreads: For each candidate the largest minus the smallest.
    """

    dense: float
    medians: tuple[float, ...]
    spreads: tuple[float, ...]


def measure_ratios(
    become: Callable[[Candidate], None],
    run: Timer,
    candidates: Sequence[Candidate],
    *,
    repeats: int,
    step: Callable[[], None],
) -> Ratios:
    """Time candidates in turns, after one turn that only warms up.

    A machine's speed drifts, so each time is divided by the mean of the dense model's right
    before and right after it.

    Args:
        become: Makes the model that is timed a candidate.
        run: Runs it once, and gives the seconds taken.
        candidates: What is timed, beside the dense model.
        repeats: Turns that count.
        step: Is called after each candidate's time, also those of the turn that warms up.
    """
    turns = [_turn(become, run, candidates, step) for _ in range(WARM_UP_TURNS + repeats)]
    counted = turns[WARM_UP_TURNS:]
    samples = list(zip(*(_fractions(*turn) for turn in counted), strict=True))
    return Ratios(
        statistics.median(seconds for dense, _ in counted for seconds in dense),
        tuple(statistics.median(found) for found in samples),
        tuple(max(found) - min(found) for found in samples),
    )


def _turn(
    become: Callable[[Candidate], None],
    run: Timer,
    candidates: Sequence[Candidate],
    step: Callable[[], None],
) -> tuple[list[float], list[float]]:
    """Seconds of the dense model (N + 1), between which are those of the candidates (N)."""
    become(DENSE_MODEL)
    dense, seconds = [run()], []
    for candidate in candidates:
        become(candidate)
        seconds.append(run())
        become(DENSE_MODEL)
        dense.append(run())
        step()
    return dense, seconds


def _fractions(dense: Sequence[float], seconds: Sequence[float]) -> list[float]:
    around = zip(dense[:-1], dense[1:], strict=True)
    return [2 * time / sum(pair) for time, pair in zip(seconds, around, strict=True)]

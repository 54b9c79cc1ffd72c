"""How many times as long one thing takes as another, from turns in which both were timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # type: ignore[import-untyped]

WARM_UPS = 1
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Ratio:
    """One time divided by another: the geometric mean over turns, and where it lies.

    Attributes:
        mean: The estimate.
        low, high: Ends of the 95% interval: Student's, of the mean of the logarithms. What a
            whole turn was like, slow or fast, cancels out of its ratio.
        turns: How many there were.

    Examples:
        >>> Ratio(mean=0.5, low=0.5, high=0.75, turns=9).width
        0.5
    """

    mean: float
    low: float
    high: float
    turns: int

    @property
    def width(self) -> float:
        """By how much the upper end is above the lower one, as a fraction of it."""
        return self.high / self.low - 1


def ratio(seconds: Sequence[float], reference: Sequence[float]) -> Ratio | None:
    """The ratio of times (turns,) to those of a reference (turns,); ``None`` of fewer than two."""
    logs = np.log(np.asarray(seconds) / np.asarray(reference))
    count = len(logs)
    if count < 2:
        return None
    error = logs.std(ddof=1) / np.sqrt(count)
    reach = scipy.stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * error
    low, mean, high = np.exp([logs.mean() - reach, logs.mean(), logs.mean() + reach]).tolist()
    return Ratio(mean, low, high, count)


def in_turns(
    measures: Mapping[str, Callable[[], float]],
    *,
    repeats: int,
    width: float = 0.0,
    seconds: float = 0.0,
) -> dict[str, list[float]]:
    """Seconds that `measures` give in turns, until the ratios to the first are known well enough.

    Every other turn goes the other way round, so that nothing always follows the same thing. There
    are at least `repeats` turns after one that only warms up. They end when no interval of a ratio
    is wider than `width` (see `Ratio.width`), or after `seconds` of timing all things together.
    """
    found: dict[str, list[float]] = {name: [] for name in measures}
    names = list(measures)
    for name in names * WARM_UPS:
        measures[name]()
    turns, spent = 0, 0.0
    while turns < repeats or (spent < seconds and not _narrow(found, width)):
        for name in names if turns % 2 == 0 else reversed(names):
            found[name].append(measures[name]())
            spent += found[name][-1]
        turns += 1
    return found


def _narrow(found: Mapping[str, Sequence[float]], width: float) -> bool:
    """Whether the intervals of all ratios to the first are narrow enough."""
    reference, *others = found.values()
    ratios = [ratio(other, reference) for other in others]
    return all(each is not None and each.width <= width for each in ratios)

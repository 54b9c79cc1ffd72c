"""How well a model answers, with standard errors, and how its answers differ from another's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evocompress.core.arrays import Floats


@dataclass(frozen=True)
class Score:
    """The mean over the questions of a task, and the paired comparison with the dense model.

    Attributes:
        value: The mean; of right answers their share.
        error: Its standard error, as lm-evaluation-harness has it: the sample's standard deviation
            divided by the root of the count; ``None`` for one question.
        difference: The mean difference to the dense model on the same questions; ``None`` for
            itself.
        difference_error: The standard error of that, which is mostly smaller than either model's.
        lost: Questions that the dense model answers rightly and this one wrongly; ``None`` where
            answers are not right or wrong.
        won: Questions the other way round.

    Examples:
        >>> found = score(np.array([1.0, 0, 0, 1]), np.array([1.0, 1, 0, 1]))
        >>> found.value, found.difference, found.lost, found.won
        (0.5, -0.25, 1, 0)
    """

    value: float
    error: float | None
    difference: float | None = None
    difference_error: float | None = None
    lost: int | None = None
    won: int | None = None


def score(values: Floats, dense: Floats | None = None) -> Score:
    """The score of values (N,), one for each question, beside those of the dense model."""
    value, error = float(values.mean()), standard_error(values)
    if dense is None:
        return Score(value, error)
    change = values - dense
    flips = [int((change == sign).sum()) for sign in (-1, 1)] if _judged(values, dense) else ()
    return Score(value, error, float(change.mean()), standard_error(change), *flips)


def standard_error(values: Floats) -> float | None:
    """That of the mean of values (N,); ``None`` for a single one."""
    count = len(values)
    return float(values.std(ddof=1)) / count**0.5 if count > 1 else None


def _judged(*found: Floats) -> bool:
    """Whether all values are 0 or 1, as those of wrong and right answers."""
    return all(np.isin(values, (0, 1)).all() for values in found)

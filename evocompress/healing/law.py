"""How far more healing goes: a law fitted to healings of several lengths.

As the P² law (2411.10272), whose loss falls with a power of the tokens to a floor; of one student
its other terms are constants. It is anchored at the student as it came:
KL(D) = floor + (KL(0) − floor) · (1 + D/scale)^(−exponent).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # type: ignore[import-untyped]

from evocompress.core.arrays import Floats

LEAST_POINTS = 3
"""As many as the law has constants."""

STARTS = ((0.1, 0.3), (0.1, 1.0), (0.5, 0.3), (0.5, 1.0))
"""Shares of the floor in the best value, and exponents, from which fits begin."""


@dataclass(frozen=True)
class HealingLaw:
    """Validation KL after healing with some tokens.

    Attributes:
        before: KL without any healing.
        floor: KL that no number of tokens gets below.
        scale: Tokens after which it begins to fall as a power.
        exponent: Of that power.

    Examples:
        >>> HealingLaw(before=1.0, floor=0.2, scale=1000.0, exponent=0.5).kl(3000)
        0.6000000000000001
    """

    before: float
    floor: float
    scale: float
    exponent: float

    def kl(self, tokens: float) -> float:
        """The KL after this number of tokens."""
        fall = (1 + tokens / self.scale) ** -self.exponent
        return self.floor + (self.before - self.floor) * float(fall)


def fit_law(before: float, points: Sequence[tuple[float, float]]) -> HealingLaw | None:
    """The law that fits best, in relative errors; ``None`` where there are too few points.

    Args:
        before: KL without healing.
        points: Tokens, and the KL after healing with them.
    """
    if len(points) < LEAST_POINTS:
        return None
    tokens, values = (np.asarray(column, dtype=np.float64) for column in zip(*points, strict=True))

    def law(constants: Floats) -> HealingLaw:
        share, scale, exponent = constants
        return HealingLaw(
            before, float(share * values.min()), float(np.exp(scale)), float(exponent)
        )

    def errors(constants: Floats) -> Floats:
        found = law(constants)
        return np.asarray([np.log(found.kl(d)) for d in tokens]) - np.log(values)

    middle = float(np.log(tokens.mean()))
    low, high = (0.0, middle - 10, 0.05), (1 - 1e-9, middle + 10, 4.0)
    fits = [
        scipy.optimize.least_squares(errors, (share, middle, exponent), bounds=(low, high))
        for share, exponent in STARTS
    ]
    return law(min(fits, key=lambda fit: float(fit.cost)).x)

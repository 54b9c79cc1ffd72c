"""What the page says of a healing beside its curve."""

from __future__ import annotations

from collections.abc import Iterator

from evocompress.report.columns import number
from evocompress.report.data import Healing

USUAL = "KL to the dense model"
"""What the healing's figures are by default."""


def healing_facts(healing: Healing) -> Iterator[str]:
    """What the summary of a healing says beside its curve."""
    if healing.measure not in ("", USUAL):
        yield f"What is lowered is the {healing.measure}."
    if healing.members:
        values = ", ".join(number(value, 3) for value in healing.members)
        yield (
            f"{len(healing.members)} healings reached {values}; the average of "
            f"{len(healing.averaged)} of them was taken."
        )
    if healing.next_kl is not None and healing.tokens and healing.best_kl is not None:
        yield (
            f"After {healing.tokens:,} tokens it is {number(healing.best_kl, 3)}; twice as many "
            f"would bring it to {number(healing.next_kl, 3)}, by the law of its cycles."
        )

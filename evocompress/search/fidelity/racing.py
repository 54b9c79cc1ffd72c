"""Races: rivals of the incumbent are measured on ever more tokens, and leave when they lose.

Every rung is a longer part of the same micro-batches, so a survivor pays only for the new ones. All
comparisons are paired, sequence by sequence, with the incumbent: what a text is like cancels out,
and a small gain is seen on few tokens (as in Hoeffding races, Maron & Moore 1994).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from evocompress.core.requests import Result
from evocompress.core.types import Candidate
from evocompress.search.fidelity.scoreboard import Scoreboard
from evocompress.search.generator_searcher import AskTell

Wanted = Sequence[tuple[Candidate, tuple[int, ...]]]
"""Candidates, each with the micro-batches on which it is to be measured."""


class Measure(Protocol):
    """Has candidates evaluated."""

    def affords(self, wanted: Wanted) -> bool:
        """Whether there are tokens left for it."""
        ...

    def __call__(self, wanted: Wanted) -> AskTell[list[Result]]:
        """The results."""
        ...


@dataclass(frozen=True)
class Rung:
    """One stage of a race.

    Attributes:
        micro_batches: All on which rivals are compared; those of the rung before come first.
        keep: How many rivals go on, at most.
    """

    micro_batches: tuple[int, ...]
    keep: int


def race(
    board: Scoreboard,
    measure: Measure,
    incumbent: Candidate,
    rivals: Sequence[Candidate],
    rungs: Sequence[Rung],
    *,
    by_chance: bool = True,
) -> AskTell[tuple[Candidate, tuple[int, ...]]]:
    """The winner: the rival with the lowest mean at the end, if it is lower than the incumbent's.

    Where the tokens do not suffice for a rung, the one before it was the end.

    Args:
        board: What is known; new values are added.
        measure: Gets what is missing.
        incumbent: Measured along with its rivals.
        rivals: Other candidates.
        rungs: In order.
        by_chance: Whether a rival leaves as soon as it is certainly worse than the incumbent;
            else only the numbers decide.

    Returns:
        The winner, and the micro-batches on which it was compared last; none where the tokens
        did not suffice for the first rung.
    """
    left, seen = list(rivals), tuple[int, ...]()
    for rung in rungs:
        entrants = [incumbent, *left]
        missing = [(entrant, board.missing(entrant, rung.micro_batches)) for entrant in entrants]
        wanted = [pair for pair in missing if pair[1]]
        if not measure.affords(wanted):
            break
        seen = rung.micro_batches
        board.add((yield from measure(wanted)))
        gaps = {rival.id: board.gap(rival, incumbent, seen) for rival in left}
        left = [rival for rival in left if not (by_chance and gaps[rival.id].hopeless)]
        left = sorted(left, key=lambda rival: gaps[rival.id].mean)[: rung.keep]
    if seen and left and board.gap(left[0], incumbent, seen).mean < 0:
        return left[0], seen
    return incumbent, seen

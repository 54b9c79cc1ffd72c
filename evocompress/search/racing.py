"""Races: rivals of the incumbent are measured on ever more tokens, and leave when they lose.

Every rung is a longer part of the same micro-batches, so a survivor pays only for the new ones. All
comparisons are paired, sequence by sequence, with the incumbent: what a text is like cancels out,
and a small gain is seen on few tokens (as in Hoeffding races, Maron & Moore 1994).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from evocompress.search.procedure import Steps
from evocompress.search.scoreboard import Scoreboard
from evocompress.types import Candidate, Result

Measure = Callable[[Sequence[tuple[Candidate, tuple[int, ...]]]], Steps[list[Result]]]
"""Evaluates candidates, each on its own micro-batches."""


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
) -> Steps[Candidate]:
    """The winner: the rival with the lowest mean at the end, if it is lower than the incumbent's.

    Args:
        board: What is known; new values are added.
        measure: Gets what is missing.
        incumbent: Measured along with its rivals.
        rivals: Other candidates.
        rungs: In order.
        by_chance: Whether a rival leaves as soon as it is certainly worse than the incumbent;
            else only the numbers decide.
    """
    left = list(rivals)
    for rung in rungs:
        entrants = [incumbent, *left]
        wanted = [(entrant, board.missing(entrant, rung.micro_batches)) for entrant in entrants]
        board.add((yield from measure([pair for pair in wanted if pair[1]])))
        gaps = {rival.id: board.gap(rival, incumbent, rung.micro_batches) for rival in left}
        left = [rival for rival in left if not (by_chance and gaps[rival.id].hopeless)]
        left = sorted(left, key=lambda rival: gaps[rival.id].mean)[: rung.keep]
    if left and board.gap(left[0], incumbent, rungs[-1].micro_batches).mean < 0:
        return left[0]
    return incumbent

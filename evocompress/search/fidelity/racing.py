"""Races: rivals of the incumbent are measured on ever more tokens, and leave when they lose.

Every rung is a longer part of the same micro-batches, so a survivor pays only for the new ones. All
comparisons are paired, sequence by sequence, with the incumbent: what a text is like cancels out,
and a small gain is seen on few tokens (as in Hoeffding races, Maron & Moore 1994).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from evocompress.core.requests import Evaluate, Request, Result
from evocompress.core.types import Candidate
from evocompress.search.fidelity.rungs import Rung
from evocompress.search.fidelity.scoreboard import Scoreboard
from evocompress.search.generator_searcher import AskTell


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
        board: What is known; new values are added.
        affords: Whether there are tokens left for requests.
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

"""What a finished search writes: the winner and the front, with their costs."""

from __future__ import annotations

from typing import Any

import numpy as np

from evocompress.journal import Journal
from evocompress.pareto import non_dominated
from evocompress.run import Outcome
from evocompress.search.base import Incumbent
from evocompress.space import SearchSpace
from evocompress.types import Candidate, Evaluate


def costs_of(space: SearchSpace, candidate: Candidate) -> dict[str, float]:
    """Every cost of one candidate, as the cost model predicts it."""
    genome = space.genome(candidate)
    return {name: float(values[0]) for name, values in space.costs(genome[None]).items()}


def winner_record(space: SearchSpace, best: Incumbent) -> dict[str, Any]:
    """The content of winner.json."""
    return {
        "id": best.candidate.id,
        "value": best.value,
        "levels": best.candidate.to_json(),
        "costs": costs_of(space, best.candidate),
        "dense_costs": space.cost_model.dense(),
        "budget": dict(space.budget),
    }


def front_rows(
    space: SearchSpace, journal: Journal, outcome: Outcome, micro_batches: int
) -> list[dict[str, Any]]:
    """The content of front.json: the candidates that were looked at most closely.

    Only those with a request of the largest size are compared; each by its mean over every
    micro-batch on which it was measured.

    Args:
        space: For the costs, those of the budget being the other axes.
        journal: The values.
        outcome: What the loop returned.
        micro_batches: Size of the calibration pool.
    """
    largest = max(outcome.fidelity.values())
    rows: list[dict[str, Any]] = [
        {
            "id": candidate.id,
            "value": mean,
            "tokens": tokens,
            "costs": costs_of(space, candidate),
        }
        for candidate in journal.candidates.values()
        if outcome.fidelity.get(candidate.id) == largest
        for mean, tokens in [_measured(journal, candidate, micro_batches)]
        if tokens
    ]
    points = np.array(
        [[row["value"], *(row["costs"][name] for name in space.budget)] for row in rows]
    )
    for row, keep in zip(rows, non_dominated(points), strict=True):
        row["non_dominated"] = bool(keep)
    return rows


def _measured(journal: Journal, candidate: Candidate, micro_batches: int) -> tuple[float, int]:
    """(mean value, positions) over all micro-batches on which a candidate was measured."""
    answers = [journal.result(Evaluate(candidate, (index,))) for index in range(micro_batches)]
    values = [value for answer in answers if answer for value in answer.values]
    positions = sum(sum(value.counts) for value in values)
    total = sum(sum(value.sums) for value in values)
    return (total / positions if positions else float("inf")), positions

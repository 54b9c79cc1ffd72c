"""What a finished search writes: the winner and the front, with their costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evocompress.journal import Journal
from evocompress.pareto import Points, hypervolume, knee, non_dominated
from evocompress.run import Outcome
from evocompress.search.base import Incumbent
from evocompress.space import SearchSpace
from evocompress.types import Candidate, Evaluate


def costs_of(space: SearchSpace, candidate: Candidate) -> dict[str, float]:
    """Every cost of one candidate, as the cost model predicts it."""
    genome = space.genome(candidate)
    return {name: float(values[0]) for name, values in space.costs(genome[None]).items()}


def winner_record(
    space: SearchSpace,
    best: Incumbent,
    rows: Sequence[Mapping[str, Any]] = (),
    *,
    objectives: Sequence[str] = (),
) -> dict[str, Any]:
    """The content of winner.json.

    Args:
        space: For the costs.
        best: What the searcher chose.
        rows: The content of front.json, which is summed up under the key ``front``.
        objectives: Costs beside those of the budget that span the front.
    """
    return {
        "id": best.candidate.id,
        "value": best.value,
        "levels": best.candidate.to_json(),
        "costs": costs_of(space, best.candidate),
        "dense_costs": space.cost_model.dense(),
        "budget": dict(space.budget),
        "front": front_summary(space, rows, objectives) if rows else None,
    }


def front_rows(
    space: SearchSpace,
    journal: Journal,
    outcome: Outcome,
    micro_batches: int,
    *,
    objectives: Sequence[str] = (),
    origins: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """The content of front.json: the candidates that were looked at most closely.

    Only those with a request of the largest size are compared; each by its mean over every
    micro-batch on which it was measured after the same treatment.

    Args:
        space: For the costs, those of the budget being other axes.
        journal: The values.
        outcome: What the loop returned.
        micro_batches: Size of the calibration pool.
        objectives: Costs beside those of the budget that are axes too.
        origins: Labels of candidates by id, such as "uniform width" of a reference.
    """
    labels = origins or {}
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
        for treatment in [outcome.treatments[candidate.id]]
        for mean, tokens in [_measured(journal, candidate, treatment, micro_batches)]
        if tokens
    ]
    points = _points(rows, axes(space, objectives))
    for row, keep in zip(rows, non_dominated(points), strict=True):
        row["non_dominated"] = bool(keep)
        if row["id"] in labels:
            row["label"] = labels[row["id"]]
    return rows


def front_summary(
    space: SearchSpace, rows: Sequence[Mapping[str, Any]], objectives: Sequence[str] = ()
) -> dict[str, Any]:
    """Axes, hypervolume and knee of the front of front.json's rows, of which there is one.

    The hypervolume lies between the front and a reference point: the dense model's costs and
    the largest value among the rows. Costs count as shares of the dense model's, so its unit
    is that of the value.
    """
    names = axes(space, objectives)
    dense = space.cost_model.dense()
    scale = np.array([1.0, *(dense[name] for name in names)])
    points = _points(rows, names) / scale
    reference = np.array([points[:, 0].max(), *(1.0 for _ in names)])
    return {
        "axes": list(names),
        "reference": dict(zip(("value", *names), (reference * scale).tolist(), strict=True)),
        "hypervolume": hypervolume(points, reference),
        "knee": rows[knee(points)]["id"],
    }


def axes(space: SearchSpace, objectives: Sequence[str] = ()) -> tuple[str, ...]:
    """The costs that span the front beside the value: the objectives and the bounded ones."""
    return tuple(dict.fromkeys([*objectives, *space.budget]))


def _points(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Points:
    """Value and costs of the rows (N, 1 + names)."""
    coordinates = [[row["value"], *(row["costs"][name] for name in names)] for row in rows]
    return np.array(coordinates, dtype=np.float64).reshape(len(rows), 1 + len(names))


def _measured(
    journal: Journal, candidate: Candidate, treatment: str, micro_batches: int
) -> tuple[float, int]:
    """(mean value, positions) over all micro-batches on which a candidate was measured."""
    requests = [Evaluate(candidate, (index,), treatment) for index in range(micro_batches)]
    answers = [journal.result(request) for request in requests]
    values = [value for answer in answers if answer for value in answer.values]
    positions = sum(sum(value.counts) for value in values)
    total = sum(sum(value.sums) for value in values)
    return (total / positions if positions else float("inf")), positions

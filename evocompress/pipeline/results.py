"""What a finished search writes: the winner and the front, with their costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isfinite
from typing import Any

import numpy as np

from evocompress.core.pareto import Points, hypervolume, knee, non_dominated
from evocompress.core.requests import Evaluate, MicroBatchValue
from evocompress.core.types import Candidate
from evocompress.pipeline.journal import Journal
from evocompress.pipeline.loop import SearchResult
from evocompress.search.base import Incumbent
from evocompress.space.space import SearchSpace


def costs_of(space: SearchSpace, candidate: Candidate) -> dict[str, float]:
    """Every cost of one candidate, as the cost model predicts it."""
    return costs_of_all(space, [candidate])[0]


def costs_of_all(space: SearchSpace, candidates: Sequence[Candidate]) -> list[dict[str, float]]:
    """Every cost of each candidate, as the cost model predicts it."""
    if not candidates:
        return []
    found = space.costs(np.stack([space.genome(candidate) for candidate in candidates]))
    rows = zip(*(values.tolist() for values in found.values()), strict=True)
    return [dict(zip(found, row, strict=True)) for row in rows]


def saved_by_types(space: SearchSpace, candidate: Candidate) -> int:
    """Bytes that the matrices of a candidate take less in their types than in the model's own."""
    levels = ((name, replace(level, bits="")) for name, level in candidate.levels)
    plain = Candidate(tuple((name, level) for name, level in levels if not level.dense))
    more, less = space.cost_model.of([plain, candidate])["weight_bytes"].tolist()
    return int(more - less)


def winner_record(
    space: SearchSpace,
    best: Incumbent,
    rows: Sequence[Mapping[str, Any]] = (),
    *,
    objectives: Sequence[str] = (),
    measured: Sequence[MicroBatchValue] = (),
    not_compared: int = 0,
    healed_last: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The content of winner.json.

    Rows of front.json are summed up under the key ``front``; a search for one candidate within a
    budget has none. Objectives are the costs beside those of the budget that span the front.
    `measured` are all values of the winner, with which those of another search of the same
    calibration are compared; `not_compared` counts the candidates that front.json lacks;
    `healed_last` are those among which short healings chose, where there are any.
    """
    return {
        "id": best.candidate.id,
        "value": best.value,
        "micro_batches": best.micro_batches,
        "treatment": best.treatment,
        "measured": [[v.micro_batch, sum(v.sums), sum(v.counts)] for v in measured],
        "not_compared": not_compared,
        "levels": best.candidate.to_json(),
        "costs": costs_of(space, best.candidate),
        "dense_costs": space.cost_model.dense(),
        "budget": dict(space.budget),
        "front": front_summary(space, rows, objectives) if rows and objectives else None,
        **({"healed_last": list(healed_last)} if healed_last else {}),
    }


def front_rows(
    space: SearchSpace,
    journal: Journal,
    outcome: SearchResult,
    *,
    objectives: Sequence[str] = (),
    origins: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """The content of front.json: the candidates that can be compared with the winner.

    All values are over the same micro-batches: those of the comparison that made the winner the
    winner, and after its treatment. A candidate is among the rows if it has a value on every one of
    them, whichever requests it is from; what was measured on fewer is not compared. A candidate
    that is no worse than the winner in value and every cost on these micro-batches, and better in
    one, is left out as well if it is worse in value on all that both were measured on: the search
    compared it there, too, and refused it. Axes are the costs of the budget and the objectives.
    Origins are labels of candidates by id, such as "uniform width" of a reference.
    """
    labels, best = origins or {}, outcome.best
    found = [
        (candidate, result)
        for candidate in map(journal.candidates.__getitem__, outcome.compared)
        if (result := journal.result(Evaluate(candidate, best.micro_batches, best.treatment)))
        and isfinite(result.mean)
    ]
    costs = costs_of_all(space, [candidate for candidate, _ in found])
    rows: list[dict[str, Any]] = [
        {
            "id": candidate.id,
            "value": result.mean,
            "tokens": sum(sum(value.counts) for value in result.values),
            "costs": own,
        }
        for (candidate, result), own in zip(found, costs, strict=True)
    ]
    rows = _not_refused(rows, journal, best, axes(space, objectives))
    points = _points(rows, axes(space, objectives))
    for row, keep in zip(rows, non_dominated(points), strict=True):
        row["non_dominated"] = bool(keep)
        if row["id"] in labels:
            row["label"] = labels[row["id"]]
    return rows


def not_compared(journal: Journal, outcome: SearchResult) -> int:
    """How many candidates have values, but not on all micro-batches that chose the winner."""
    best, candidates = outcome.best, map(journal.candidates.__getitem__, outcome.compared)
    return sum(
        journal.result(Evaluate(candidate, best.micro_batches, best.treatment)) is None
        and bool(journal.measured(candidate.id, best.treatment))
        for candidate in candidates
    )


def front_summary(
    space: SearchSpace, rows: Sequence[Mapping[str, Any]], objectives: Sequence[str] = ()
) -> dict[str, Any]:
    """Axes, hypervolume and knee of the front among the rows of front.json, at least one.

    All of it is about the values of the rows, so about the micro-batches that these have in
    common. The hypervolume lies between the front and a reference point: the dense model's costs
    and the largest value among the rows. Costs count as shares of the dense model's, so its unit
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


def _not_refused(
    rows: list[dict[str, Any]], journal: Journal, best: Incumbent, names: Sequence[str]
) -> list[dict[str, Any]]:
    """The rows without those that dominate the winner's, but are worse on all common text."""
    points, winner = _points(rows, names), best.candidate.id
    chosen = points[[row["id"] == winner for row in rows]]
    dominates = np.all(points <= chosen, axis=1) & np.any(points < chosen, axis=1)
    above = set(np.flatnonzero(dominates).tolist())
    return [
        row
        for index, row in enumerate(rows)
        if not (index in above and _is_worse(journal, row["id"], winner, best.treatment))
    ]


def _is_worse(journal: Journal, candidate: str, winner: str, treatment: str) -> bool:
    """Whether a candidate's mean is above the winner's on all that both were measured on."""
    own, other = (
        {value.micro_batch: value for value in journal.measured(name, treatment)}
        for name in (candidate, winner)
    )
    means = (
        sum(sum(values[batch].sums) for batch in sorted(own.keys() & other.keys()))
        for values in (own, other)
    )
    return next(means) > next(means)

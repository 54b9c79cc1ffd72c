"""One search for a front against several published searches with a budget each.

Both sides get the same requested tokens in all. What the baseline offers is the non-dominated set
of everything that any of its runs compared at its last stage, and the runs' winners; all of it is
then measured on held-out text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from contest_cells import Case
from heldout import heldout
from numpy.typing import NDArray

from evocompress import api
from evocompress.core.config import RunConfig
from evocompress.core.files import read_json
from evocompress.core.pareto import hypervolume, non_dominated
from evocompress.core.progress import Reporter
from evocompress.core.types import Candidate
from evocompress.models.loading import LoadedModel
from evocompress.pipeline.context import RunContext
from evocompress.pipeline.journal import read_candidates
from evocompress.pipeline.run_folder import RunFolder
from evocompress.space import sampling

COST = "params"
HIGHEST = 1.05
"""The reference point's share of the parameters."""

WORSE = 1.1
"""Its divergence, as a multiple of the even candidate's at the smallest budget."""

Points = NDArray[np.float64]


@dataclass(frozen=True)
class FrontContest:
    """What is compared.

    Attributes:
        case: The space without a budget, and its data.
        searcher: Name and settings of the search for a front.
        baseline: Name and settings of the searches with one budget each.
        budgets: Shares of the dense model's parameters, smallest first.
        tokens: Requested tokens of either side.
    """

    case: Case
    searcher: Mapping[str, Any]
    baseline: Mapping[str, Any]
    budgets: Sequence[float]
    tokens: int


@dataclass(frozen=True)
class Fronts:
    """Held-out points: (divergence, share of parameters) of each (N, 2).

    Attributes:
        ours: Of the one search.
        theirs: Of the searches with one budget each.
        reference: Beyond which nothing counts (2,).
    """

    ours: Points
    theirs: Points
    reference: Points

    def figures(self) -> dict[str, float]:
        """The hypervolumes and numbers of points."""
        return {
            "hypervolume": hypervolume(self.ours, self.reference),
            "hypervolume_baseline": hypervolume(self.theirs, self.reference),
            "points": len(self.ours),
            "points_baseline": len(self.theirs),
            "reference_kl": float(self.reference[0]),
        }


def fronts(contest: FrontContest, loaded: LoadedModel, seed: int, reporter: Reporter) -> Fronts:
    """Runs or continues both sides with one seed, and measures what they found."""
    search = {**contest.searcher, "tokens": contest.tokens}
    context = _run(contest, search, {}, f"{search['name']}-{seed}", seed, loaded, reporter)
    rows = [row for row in read_json(context.folder.front) if row["non_dominated"]]
    ours = _points(contest, [(context, row["id"]) for row in rows])
    budgeted = list(_budgeted(contest, loaded, seed, reporter))
    theirs = _points(contest, _archives(budgeted))
    smallest = budgeted[0]
    even = smallest.space.candidate(sampling.uniform(smallest.space))
    worst = _quality(contest, smallest, even)
    return Fronts(ours, theirs, np.array([WORSE * worst, HIGHEST]))


def _budgeted(
    contest: FrontContest, loaded: LoadedModel, seed: int, reporter: Reporter
) -> Iterator[RunContext]:
    """Each finished run of the baseline."""
    search = {**contest.baseline, "tokens": contest.tokens // len(contest.budgets)}
    for share in contest.budgets:
        name = f"{search['name']}-{round(100 * share)}-{seed}"
        yield _run(contest, search, {COST: share}, name, seed, loaded, reporter)


def _run(
    contest: FrontContest,
    search: Mapping[str, Any],
    budget: Mapping[str, float],
    name: str,
    seed: int,
    loaded: LoadedModel,
    reporter: Reporter,
) -> RunContext:
    """A search, run or continued to its end."""
    case = contest.case
    config = RunConfig.model_validate(
        {
            "name": f"{name}-{search['tokens']}",
            "runs": case.results,
            "seed": seed,
            "model": case.model,
            "calibration": case.calibration,
            "space": {**case.space, "budget": budget},
            "library": {"path": case.results / "library"},
            "search": search,
        }
    )
    folder = RunFolder(config.folder)
    if not folder.winner.exists():
        api.search(config, resume=folder.path.exists(), reporter=reporter)
    context = RunContext(config, folder, reporter)
    context = context.with_parts(loaded=loaded)
    return context


def _archives(benches: Sequence[RunContext]) -> list[tuple[RunContext, str]]:
    """What nothing else dominates of all that was compared, by its measured value; and winners."""
    entries: dict[tuple[int, str], tuple[RunContext, str]] = {}
    points: list[tuple[float, float]] = []
    for number, context in enumerate(benches):
        for row in read_json(context.folder.front):
            entries[number, row["id"]] = (context, row["id"])
            points.append((row["value"], row["costs"][COST]))
    front = non_dominated(np.array(points))
    winners = {(i, read_json(b.folder.winner)["id"]) for i, b in enumerate(benches)}
    found = zip(entries.items(), front, strict=True)
    return [entry for (key, entry), wanted in found if wanted or key in winners]


def _points(contest: FrontContest, entries: Sequence[tuple[RunContext, str]]) -> Points:
    """Held-out divergences and shares of parameters of candidates."""
    found = []
    for context, identity in entries:
        candidate = read_candidates(context.folder.journal)[identity]
        model = context.space.cost_model
        share = float(model.of([candidate])[COST][0]) / model.dense()[COST]
        found.append((_quality(contest, context, candidate), share))
    return np.array(found).reshape(-1, 2)


def _quality(contest: FrontContest, context: RunContext, candidate: Candidate) -> float:
    part = slice(0, contest.case.looked_at)
    return heldout(context, candidate, contest.case.results / "quality", part)["kl"]

"""One searcher with one seed on one case, read at several numbers of requested tokens."""

from __future__ import annotations

import json
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from cells import cell
from heldout import heldout

from evocompress.compression.live_model import LiveModel
from evocompress.core.config import RunConfig
from evocompress.core.progress import Reporter
from evocompress.core.types import Candidate
from evocompress.models.loading import LoadedModel
from evocompress.pipeline import loop
from evocompress.pipeline.context import RunContext
from evocompress.pipeline.journal import Journal, Step, read_candidates
from evocompress.pipeline.run_folder import RunFolder

PLANNING = ("auto",)
"""Searchers that divide their tokens beforehand: a part of a longer run is no shorter one."""


@dataclass(frozen=True)
class Case:
    """A space, and what it is compared on.

    Attributes:
        space: As in a run's configuration.
        calibration: The same.
        results: Where everything of the case is kept.
        looked_at: How many of the first held-out sequences are measured.
        model: As in a run's configuration.
        fresh: Whether the second half of the held-out sequences is measured, too.
    """

    space: Mapping[str, Any]
    calibration: Mapping[str, Any]
    results: Path
    looked_at: int
    model: Mapping[str, Any] = field(default_factory=dict)
    fresh: bool = False


@dataclass(frozen=True)
class Reading:
    """The incumbent of a search at one moment.

    Attributes:
        asked: Tokens that the search was to spend by then.
        requested: Those that it had.
        computed: Those that were really run.
        seconds: Wall time of the search until its end.
        kl: Held-out divergence over the whole vocabulary, nats per token; ``None`` where the
            tokens did not suffice for a first comparison.
        top256: The same in the buckets of the proxy.
        fresh: The same on untouched sequences, where they were measured.
    """

    asked: int
    requested: int
    computed: int
    seconds: float
    kl: float | None = None
    top256: float | None = None
    fresh: float | None = None


def readings(
    case: Case,
    loaded: LoadedModel,
    searcher: str,
    settings: Mapping[str, Any],
    seed: int,
    asked: Sequence[int],
    reporter: Reporter,
) -> list[Reading]:
    """What one searcher found after each of some numbers of tokens."""
    name = searcher.split("_no_")[0].removesuffix("_unguided")
    again = name in PLANNING
    found = []
    for tokens in asked:
        limit = tokens if again else asked[-1]
        config = _config(case, f"{searcher}-{seed}-{limit}", name, settings, seed, limit)
        context = RunContext(config, RunFolder(config.folder), reporter)
        context = context.with_parts(loaded=loaded)
        steps, seconds = _searched(context)
        within = [step for step in steps if step.requested <= tokens and step.incumbent]
        if not within:
            found.append(Reading(tokens, 0, 0, seconds))
            continue
        last = within[-1]
        candidate = _incumbent(context, last, front="objectives" in settings)
        quality = _quality(context, case, candidate)
        found.append(Reading(tokens, last.requested, last.computed, seconds, **quality))
    return found


def _config(
    case: Case, name: str, searcher: str, settings: Mapping[str, Any], seed: int, tokens: int
) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": name,
            "runs": case.results,
            "seed": seed,
            "model": case.model,
            "calibration": case.calibration,
            "space": case.space,
            "library": {"path": case.results / "library"},
            "search": {"name": searcher, "tokens": tokens, **settings},
        }
    )


def _searched(context: RunContext) -> tuple[Sequence[Step], float]:
    """The steps of a search, run or continued to its end, and its seconds where it ran at once."""
    context.folder.path.mkdir(parents=True, exist_ok=True)

    def search() -> dict[str, Any]:
        begun = time.perf_counter()
        library = context.library
        with (
            Journal(context.folder.journal, context.header()) as journal,
            LiveModel(context.loaded, library) as live,
            closing(context.executor(live)) as executor,
            context.reporter.stage(context.config.name),
        ):
            pool, tokens = context.calibration.pool, context.config.search.tokens
            loop.search(context.searcher(), executor, journal, pool, tokens=tokens)
            steps = [asdict(step) for step in journal.steps]
        return {"seconds": time.perf_counter() - begun, "steps": steps}

    context.library  # noqa: B018  (made here, so that it does not count as search)
    found = cell(context.folder.path, "searched", search)
    return [Step(**step) for step in found["steps"]], found["seconds"]


def _incumbent(context: RunContext, step: Step, front: bool) -> Candidate:
    """The incumbent of a step; of a search for a front its best point, not its knee.

    That is the one of least divergence within the budget among those compared on most tokens.
    """
    path = context.folder.journal
    candidates = read_candidates(path)
    if not front:
        return candidates[step.incumbent or ""]
    found: defaultdict[str, list[float]] = defaultdict(list)
    for record in map(json.loads, path.read_text().splitlines()):
        if record["type"] == "value":
            found[record["candidate"]].append(sum(record["sums"]) / sum(record["counts"]))
        if record["type"] == "step" and record["step"] == step.step:
            break
    genomes = np.stack([context.space.genome(candidates[name]) for name in found])
    feasible = [n for n, fits in zip(found, context.space.feasible(genomes), strict=True) if fits]
    most = max(len(found[name]) for name in feasible)
    closest = [name for name in feasible if len(found[name]) == most]
    return candidates[min(closest, key=lambda name: statistics.fmean(found[name]))]


def _quality(context: RunContext, case: Case, candidate: Candidate) -> dict[str, float]:
    """Held-out quality, and that on fresh sequences where it is wanted."""
    folder = case.results / "quality"
    quality = heldout(context, candidate, folder, slice(0, case.looked_at))
    found = {"kl": quality["kl"], "top256": quality["kl_top256"]}
    if case.fresh:
        half = slice(len(context.calibration.heldout) // 2, None)
        found["fresh"] = heldout(context, candidate, folder, half)["kl_top256"]
    return found

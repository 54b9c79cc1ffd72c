"""Searchers against each other at equal requested tokens, on SmolLM2-135M and WikiText-2.

A case is a space and its library; a cell is one searcher with one seed on it. A searcher that
divides its tokens beforehand (`auto` and those like it) runs anew for a sixth, a third and all of
them; the others run once and are read where they had spent as much. Held-out quality is measured
over the whole vocabulary, and in the top 256 buckets, on the first 20 sequences of the held-out
file; with ``--fresh`` also on its sequences 100 to 199, which nothing was ever tuned on.

    python benchmarks/search.py --calibration valid.txt --heldout test.txt --json out.json
    python benchmarks/search.py --case sparsity50 --searchers auto evopress --seeds 0 1 2 ...

The case ``front`` is one search for a front of divergence against parameters, beside five
published searches with a budget each and a fifth of the tokens (`contest_front.py`).

Libraries, searches, every measurement and a picture of each case are kept in the results folder:
an interrupted run goes on. Run ``--seeds 0`` on one machine and ``--seeds 1`` on another, lay their
folders together (those named ``readings`` are enough), and all seeds are one comparison. Half a
million tokens take about a quarter of an hour on two cores.
``--quick`` does the same in a minute on a tiny random model and text of its own.

Figures: `CASE_SEARCHER_kl_SHARE` and `..._top256`, means over the seeds, with `sd_` their standard
deviation; `CASE_SEARCHER_computed`, the tokens that were really run, and `_seconds`, both at all
tokens; `CASE_ratio_SEARCHER`, all tokens divided by those after which `auto` was first at most at
the other searcher's final KL, mean over the seeds. `hypervolume` and `hypervolume_baseline` are
those of the front. What has an aim is named by its tokens once more: `auto_kl_110k_top256`,
`depth_kl_220k_top256`, `tokens_to_match_evopress_ratio`, `auto_fresh_kl`; there the schedule of
the published search that ends best stands for it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from cells import cell
from common import Figure, emit
from contest_cells import Case, Reading, readings
from contest_front import FrontContest, Fronts, fronts
from pictures import curves
from pictures import fronts as draw_fronts
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from evocompress.core.config import ModelConfig
from evocompress.core.progress import Reporter
from evocompress.models.loading import LoadedModel, load

SHARES = {"sixth": 1 / 6, "third": 1 / 3, "all": 1.0}
STAGES = {"offspring": 16, "survivors": (4, 1), "stage_tokens": (1024, 4096)}
FRONT = {"objectives": ["params"]}
# Two other schedules of the published search: many cheap generations, and few careful ones.
BRIEF = {"offspring": 8, "survivors": (2, 1), "stage_tokens": (512, 2048)}
CAREFUL = {"offspring": 32, "survivors": (8, 2, 1), "stage_tokens": (512, 2048, 8192)}
PUBLISHED = ("evopress", "evopress_brief", "evopress_careful")
DEPTH = {"offspring": 16, "survivors": (2, 1), "stage_tokens": (1024, 4096)}
ENDLESS = 10**6
SHORT = {"candidate_tokens": 4096}
FRONT_CASE = "front"
BUDGETS = (0.6, 0.68, 0.76, 0.84, 0.92)


@dataclass(frozen=True)
class Plan:
    """What is compared.

    Attributes:
        model: Source and dtype.
        cases: By name.
        searchers: {name: {case, or "" for all others: its settings}}.
        tokens: Requested tokens of each search.
        fresh: Whether the untouched sequences are measured, too.
        front: The comparison of fronts, if it is wanted.
    """

    model: Mapping[str, Any]
    cases: Mapping[str, Case]
    searchers: Mapping[str, Mapping[str, Mapping[str, Any]]]
    tokens: int
    fresh: bool
    front: FrontContest | None = None


def main() -> None:
    """Runs or continues the comparison and prints its figures."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as scratch:
        plan = _quick(Path(scratch)) if arguments.quick else _full(arguments)
        seeds = [0] if arguments.quick else arguments.seeds
        figures = _figures(plan, seeds) | _front_figures(plan, seeds)
        emit("search", figures, arguments.json)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calibration", help="text file for library and search")
    parser.add_argument("--heldout", help="text file for the held-out sequences")
    parser.add_argument("--results", type=Path, default=Path("results/search"))
    cases = [*_cases(), FRONT_CASE]
    parser.add_argument("--case", nargs="+", default=cases, choices=cases)
    parser.add_argument("--searchers", nargs="+", default=["auto", "evopress"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tokens", type=int, default=660_000)
    parser.add_argument("--fresh", action="store_true", help="measure the untouched sequences")
    parser.add_argument("--json")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    if not arguments.quick and not (arguments.calibration and arguments.heldout):
        parser.error("give --calibration and --heldout, or --quick")
    unknown = set(arguments.searchers) - set(_searchers())
    if unknown:
        parser.error(f"--searchers: {sorted(unknown)} unknown; there are {sorted(_searchers())}")
    return arguments


def _cases() -> dict[str, Mapping[str, Any]]:
    """The spaces."""
    channels = [step / 16 for step in range(1, 16)]
    share = 23 / 30
    return {
        "sparsity50": {"sparsity": {"target": 0.5, "step": 20736, "levels": 6}},
        "sparsity70": {"sparsity": {"target": 0.7, "step": 12441, "levels": 6}},
        # As many parameters and keys as without seven attentions and seven MLPs of thirty.
        "depth": {"drop": {"protect": []}, "budget": {"body_params": share, "kv_bytes": share}},
        "params70": {
            "width": {"channels": channels, "multiple_of": 96},
            "drop": {},
            "budget": {"body_params": 0.70},
        },
    }


def _front_space() -> Mapping[str, Any]:
    """The space of the fronts: that of `params70`, which has no budget of its own there."""
    return {key: value for key, value in _cases()["params70"].items() if key != "budget"}


def _searchers() -> dict[str, dict[str, dict[str, Any]]]:
    """Settings of every searcher that is compared; what ends by the tokens has no end itself."""
    endless = {"generations": ENDLESS}
    candidates = {"candidates": ENDLESS, **SHORT}
    return {
        "auto": {"": {}},
        "auto_no_estimates": {"": {"estimates": False}},
        "auto_unguided": {"": {"guided": False}},
        "auto_no_surrogate": {"": {"surrogate": False}},
        "auto_no_racing": {"": {"racing": False}},
        "evopress": {"": {**STAGES, **endless}, "depth": {**DEPTH, **endless, "initial": 32}},
        "evopress_brief": {"": {"name": "evopress", **BRIEF, **endless}},
        "evopress_careful": {"": {"name": "evopress", **CAREFUL, **endless}},
        "random": {"": {**STAGES, **endless}},
        "nsga2": {"": {**FRONT, **SHORT, "front_tokens": 8192, "front_size": 4}},
        "tpe": {"": candidates},
        "greedy": {"": {"candidate_tokens": 1024}},
        "evopress_dp": {"": SHORT},
        "distortion_dp": {"": {"levels": 1, "probe_tokens": 512, **SHORT}},
    }


def _full(arguments: argparse.Namespace) -> Plan:
    calibration = {
        "source": arguments.calibration,
        "heldout_source": arguments.heldout,
        "library_sequences": 128,
        "search_sequences": 406,
        "heldout_sequences": 200,
        "length": 512,
        "micro_batch": 1,
    }
    known, cases = _searchers(), _cases()
    model = {"source": "demo:smollm2-135m", "dtype": "auto"}
    front = FrontContest(
        Case(_front_space(), calibration, arguments.results / FRONT_CASE, 20, model),
        {
            **{"name": "nsga2", **FRONT, "range": {"params": [BUDGETS[0], 1.0]}},
            **{"effect_rounds": 2, "effect_levels": 2, "population": 40},
            **{"candidate_tokens": 1024, "front_tokens": 4096, "front_size": 24},
        },
        {"name": "evopress", **STAGES, "generations": ENDLESS},
        BUDGETS,
        arguments.tokens,
    )
    return Plan(
        model=model,
        cases={
            name: Case(cases[name], calibration, arguments.results / name, looked_at=20)
            for name in arguments.case
            if name != FRONT_CASE
        },
        searchers={name: known[name] for name in arguments.searchers},
        tokens=arguments.tokens,
        fresh=arguments.fresh,
        front=front if FRONT_CASE in arguments.case else None,
    )


def _quick(folder: Path) -> Plan:
    from evocompress.testing.tiny import tiny_checkpoint

    text = folder / "text.txt"
    text.write_text(" ".join(f"word{number * number % 97}" for number in range(4000)))
    calibration = {
        "source": str(text),
        "library_sequences": 8,
        "search_sequences": 64,
        "heldout_sequences": 6,
        "length": 32,
        "micro_batch": 1,
    }
    staged = {"offspring": 8, "survivors": (2, 1), "stage_tokens": (64, 256), "generations": 99}
    spaces = {
        "sparsity50": {"sparsity": {"target": 0.5, "step": 64, "levels": 4}},
        "depth": {"drop": {"protect": []}, "budget": {"body_params": 0.7}},
    }
    model = {"source": str(tiny_checkpoint(folder / "model", "llama"))}
    width = {"width": {"channels": [0.25, 0.5, 0.75], "multiple_of": 8}, "drop": {}}
    tiny = {"candidate_tokens": 64, "front_tokens": 128, "front_size": 8, "population": 12}
    front = FrontContest(
        Case(width, calibration, folder / FRONT_CASE, 4, model),
        {"name": "nsga2", **FRONT, "rungs": 3, **tiny},
        {"name": "evopress", **staged},
        (0.8, 0.9),
        6_000,
    )
    return Plan(
        model=model,
        cases={
            name: Case(space, calibration, folder / name, looked_at=4)
            for name, space in spaces.items()
        },
        searchers={
            "auto": {"": {}},
            "evopress": {"": {**staged, "initial": 4, "initial_tokens": 64}},
        },
        tokens=12_000,
        fresh=True,
        front=front,
    )


def _figures(plan: Plan, seeds: Sequence[int]) -> dict[str, Figure]:
    """The figures of all cells."""
    figures: dict[str, Figure] = {"seeds": len(seeds), "tokens": plan.tokens}
    for case_name, case in plan.cases.items():
        found: defaultdict[str, list[list[Reading]]] = defaultdict(list)
        for searcher, settings in plan.searchers.items():
            chosen = settings.get(case_name, settings[""])
            for seed in seeds:
                row = _row(plan, case, searcher, chosen, seed)
                found[searcher].append(row)
                Console().print(case_name, searcher, seed, [_shown(r.top256) for r in row])
        figures |= {f"{case_name}_{key}": value for key, value in _summary(found).items()}
        figures |= _headline(case_name, found)
        _print(case_name, found)
        _draw(case.results.with_suffix(".png"), case_name, found)
    return figures


def _row(
    plan: Plan, case: Case, searcher: str, settings: Mapping[str, Any], seed: int
) -> list[Reading]:
    """The readings of one cell, kept beside the others: those of several machines are one table."""
    name = f"{searcher}-{seed}-{plan.tokens}{'-fresh' if plan.fresh else ''}"
    spent = [round(plan.tokens * share) for share in SHARES.values()]
    run = replace(case, model=plan.model, fresh=plan.fresh)

    def compute() -> dict[str, Any]:
        row = readings(run, _loaded(plan), searcher, settings, seed, spent, Reporter())
        return {"readings": [asdict(reading) for reading in row]}

    found = cell(case.results / "readings", name, compute)
    return [Reading(**each) for each in found["readings"]]


def _loaded(plan: Plan) -> LoadedModel:
    """The model, loaded once, and only where a cell is missing."""
    model = ModelConfig.model_validate(plan.model)
    return _load(model.source, model.dtype)


_load = cache(lambda source, dtype: load(source, dtype=dtype))


def _front_figures(plan: Plan, seeds: Sequence[int]) -> dict[str, Figure]:
    """The figures of the fronts, means over the seeds."""
    if plan.front is None:
        return {}
    found = [_fronts(plan, plan.front, seed) for seed in seeds]
    points = {"one search": found[0].ours, "a search for each budget": found[0].theirs}
    labels = ("parameters, share of dense", "held-out KL, nats per token")
    draw_fronts(plan.front.case.results.with_suffix(".png"), "SmolLM2-135M", points, labels)
    rows = [each.figures() for each in found]
    return {key: _mean(row[key] for row in rows) for key in rows[0]}


def _fronts(plan: Plan, front: FrontContest, seed: int) -> Fronts:
    """Both sides of one seed, kept like a cell."""

    def compute() -> dict[str, Any]:
        found = fronts(front, _loaded(plan), seed, Reporter())
        return {name: points.tolist() for name, points in vars(found).items()}

    kept = cell(front.case.results / "readings", f"{seed}-{front.tokens}", compute)
    return Fronts(**{name: np.array(points) for name, points in kept.items()})


def _draw(path: Path, case: str, found: Mapping[str, Sequence[Sequence[Reading]]]) -> None:
    lines = {
        searcher: [[(r.requested, r.top256) for r in row if r.top256 is not None] for row in rows]
        for searcher, rows in found.items()
    }
    curves(path, case, lines, ("requested tokens", "held-out KL in top-256 buckets"))


def _summary(found: Mapping[str, Sequence[Sequence[Reading]]]) -> dict[str, Figure]:
    figures: dict[str, Figure] = {}
    for searcher, rows in found.items():
        for place, share in enumerate(SHARES):
            column = [row[place] for row in rows]
            figures[f"{searcher}_kl_{share}"] = _mean(reading.kl for reading in column)
            top = [reading.top256 for reading in column if reading.top256 is not None]
            figures[f"{searcher}_kl_{share}_top256"] = _mean(r.top256 for r in column)
            if len(top) > 1:
                figures[f"sd_{searcher}_kl_{share}_top256"] = statistics.stdev(top)
        last = [row[-1] for row in rows]
        figures[f"{searcher}_computed"] = _mean(reading.computed for reading in last)
        figures[f"{searcher}_seconds"] = _mean(reading.seconds for reading in last)
        if all(reading.fresh is not None for reading in last):
            figures[f"{searcher}_fresh_kl"] = _mean(reading.fresh for reading in last)
        if searcher != "auto" and "auto" in found:
            figures[f"ratio_{searcher}"] = _ratio(found["auto"], rows)
    return figures


def _headline(case: str, found: Mapping[str, Sequence[Sequence[Reading]]]) -> dict[str, Figure]:
    """The figures with an aim, by the tokens that were asked for."""
    names = {"sparsity50": "auto", "depth": "depth"}
    if case not in names or "auto" not in found:
        return {}
    ours = found["auto"]
    figures: dict[str, Figure] = {
        f"{names[case]}_kl_{reading.asked // 1000}k_top256": _mean(r[place].top256 for r in ours)
        for place, reading in enumerate(ours[0])
    }
    schedules = [found[name] for name in PUBLISHED if name in found]
    if case == "sparsity50" and schedules:
        best = min(schedules, key=lambda rows: _or_worst(_mean(row[-1].top256 for row in rows)))
        figures["auto_fresh_kl"] = _mean(row[-1].fresh for row in ours)
        figures["evopress_fresh_kl"] = _mean(row[-1].fresh for row in best)
        figures["tokens_to_match_evopress_ratio"] = _ratio(ours, best)
    return figures


def _ratio(ours: Sequence[Sequence[Reading]], theirs: Sequence[Sequence[Reading]]) -> float | None:
    """All tokens over those after which we were first as good as they in the end; mean."""
    ratios = []
    for mine, other in zip(ours, theirs, strict=True):
        aim = _or_worst(other[-1].top256)
        good = [reading.asked for reading in mine if _or_worst(reading.top256) <= aim]
        ratios += [other[-1].asked / good[0]] if good else []
    return statistics.fmean(ratios) if len(ratios) == len(ours) else None


def _or_worst(value: float | None) -> float:
    return float("inf") if value is None else value


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean; ``None`` where one was not measured."""
    known = list(values)
    return (
        None if None in known else statistics.fmean(value for value in known if value is not None)
    )


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _print(case: str, found: Mapping[str, Sequence[Sequence[Reading]]]) -> None:
    table = Table("held-out KL, top 256", *SHARES, title=case, box=SIMPLE)
    for searcher, rows in found.items():
        means = [_mean(row[place].top256 for row in rows) for place in range(len(SHARES))]
        table.add_row(searcher, *map(_shown, means))
    Console().print(table)


if __name__ == "__main__":
    main()

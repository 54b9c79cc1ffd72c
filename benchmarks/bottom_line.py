"""The bottom line: what is left of SmolLM2-135M at 0.7 and 0.5 of its latency, after healing.

Every method gets the same budget, a share of the prefill latency that is measured on this machine,
the same calibration text, the same format (``hf``) and the same healing:

- ``uniform``: every layer equally wide (criterion Minitron);
- ``shortgpt``: blocks by their influence (2403.03853); ``last``: the last blocks;
- ``flap``: heads and channels by fluctuation (2312.11983), with biases;
- ``evopress``: sub-layers dropped by evolution (2410.14649);
- ``ours``: widths and drops by `auto`.

Judged on texts and tasks that nothing was searched or healed on: KL to the dense model, perplexity,
accuracy with the mean over tasks, the latency that was measured, new tokens per second in
transformers, and with ``--engines`` in vLLM and llama.cpp (`make engines`). Means over the seeds,
with their standard deviation.

    python benchmarks/bottom_line.py --calibration wikitext2-valid.txt --text books-train.txt
        --heldout wikitext2-test.txt books-heldout.txt news.txt --tasks tasks --json out.json

Every method, budget and seed is a cell that is kept in the results folder: an interrupted run goes
on. ``--methods``, ``--budgets`` and ``--seeds`` take some of them; ``--quick`` does all in a minute
or two on a tiny random model.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from cells import cell
from common import Figure, emit
from healing import quick_setup
from numpy.typing import NDArray
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from evocompress import api
from evocompress.core.config import RunConfig
from evocompress.core.progress import Reporter
from evocompress.evaluation.tasks import find_tasks
from evocompress.export import PROGRAMS
from evocompress.search.base import Searcher
from evocompress.search.baselines.one_shot import OneShotRemoval
from evocompress.search.generator_searcher import AskTell
from evocompress.testing.engines import generate, why_missing

BUDGETS = (0.7, 0.5)
TOKENS = 220_000
"""That each search may request."""

BLOCKS = {"drop": {"units": ["block"], "protect": []}}
SUBLAYERS = {"drop": {"units": ["attention", "mlp"], "protect": []}}
NEW_TOKENS = 32


class LastBlocks(OneShotRemoval):
    """The last blocks go first."""

    name = "last"

    def _importance(self) -> AskTell[NDArray[np.float64] | None]:
        yield from ()
        return -np.arange(len(self.space.encoding.droppable), dtype=np.float64)


@dataclass(frozen=True)
class Method:
    """How a method's candidate is found.

    Attributes:
        space: What it may change.
        search: Settings of the search.
        library: Settings of the level library.
        searcher: The class of the searcher, where it has no name.
    """

    space: Mapping[str, Any]
    search: Mapping[str, Any]
    library: Mapping[str, Any] = field(default_factory=dict)
    searcher: type[Searcher] | None = None


@dataclass(frozen=True)
class Setup:
    """What is compared on what.

    Attributes:
        folder: Of runs and cells.
        run: Settings that all runs have.
        methods: By name.
        budgets: Shares of the cost that is bounded.
        cost: That cost.
        seeds: Of searches, and of the order in which healing reads its text.
        engines: Programs that generate as well.
    """

    folder: Path
    run: Mapping[str, Any]
    methods: Mapping[str, Method]
    budgets: Sequence[float] = BUDGETS
    cost: str = "latency"
    seeds: Sequence[int] = (0, 1, 2)
    engines: Sequence[str] = ()


def methods(
    width: Mapping[str, Any], evolution: Mapping[str, Any], tokens: int
) -> dict[str, Method]:
    """The methods; `width` says how sub-layers may be narrowed."""
    even, free = {"width": {**width, "uniform": True}}, {"width": {**width, "protect": []}}
    return {
        "uniform": Method(even, {"name": "uniform"}, {"width_criterion": "minitron"}),
        "shortgpt": Method(BLOCKS, {"name": "shortgpt"}),
        "last": Method(BLOCKS, {}, searcher=LastBlocks),
        "flap": Method({**free, **SUBLAYERS}, {"name": "flap"}, {"width_criterion": "flap"}),
        "evopress": Method(SUBLAYERS, {"name": "evopress", **evolution, "tokens": tokens}),
        "ours": Method(
            {"width": width, "drop": {"units": ["attention", "mlp"]}},
            {"name": "auto", "tokens": tokens},
        ),
    }


def main() -> None:
    """Makes or reads every cell and prints the tables."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as scratch:
        setup = _quick(Path(scratch)) if arguments.quick else _full(arguments)
        rows = [
            _row(setup, name, budget, seed)
            for budget, name, seed in product(setup.budgets, setup.methods, setup.seeds)
        ]
        figures: dict[str, Figure] = {}
        for budget in setup.budgets:
            figures |= _figures(setup, [row for row in rows if row["budget"] == budget], budget)
        emit("bottom_line", figures, arguments.json)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calibration", help="text file for libraries and searches")
    parser.add_argument("--text", help="text file to heal on, beside the calibration's")
    parser.add_argument("--heldout", nargs="+", help="text files that judge")
    parser.add_argument("--tasks", type=Path, help="folder of tasks, NAME.jsonl")
    parser.add_argument("--questions", type=int, default=500, help="of each task")
    parser.add_argument("--tokens", type=int, default=500_000, help="to heal with")
    parser.add_argument("--methods", nargs="+", help="only these")
    parser.add_argument("--budgets", type=float, nargs="+", default=list(BUDGETS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--engines", nargs="*", default=[], choices=["vllm", "llama.cpp"])
    parser.add_argument("--results", type=Path, default=Path("results/bottom_line"))
    parser.add_argument("--json")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    if not (arguments.quick or (arguments.calibration and arguments.text and arguments.heldout)):
        parser.error("give --calibration, --text and --heldout, or --quick")
    return arguments


def _full(arguments: argparse.Namespace) -> Setup:
    channels = [step / 16 for step in range(1, 16)]
    every = methods({"channels": channels, "multiple_of": 64}, {}, TOKENS)
    wanted = arguments.methods or list(every)
    evaluate: dict[str, Any] = {"texts": arguments.heldout[1:]}
    if arguments.tasks is not None:
        names = sorted(path.stem for path in arguments.tasks.glob("*.jsonl"))
        find_tasks(names, arguments.tasks)
        folder, limit = str(arguments.tasks), arguments.questions
        evaluate |= {"tasks": names, "tasks_folder": folder, "limit": limit}
    calibration = {
        "source": arguments.calibration,
        "heldout_source": arguments.heldout[0],
        "library_sequences": 64,
        "search_sequences": 64,
        "heldout_sequences": 40,
        "length": 512,
        "micro_batch": 1,
    }
    run = {
        "model": {"source": "demo:smollm2-135m"},
        "calibration": calibration,
        "heal": {
            "source": {arguments.text: 1.0, arguments.calibration: 1.0},
            "tokens": arguments.tokens,
            "evaluate_every": 50,
        },
        "evaluate": evaluate,
    }
    return Setup(
        arguments.results,
        run,
        {name: every[name] for name in wanted},
        arguments.budgets,
        seeds=arguments.seeds,
        engines=arguments.engines,
    )


def _quick(folder: Path) -> Setup:
    """A tiny random model, texts of its own, and a bound on parameters."""
    setup = quick_setup(folder)
    evolution = {"generations": 2, "offspring": 4, "survivors": [2, 1], "stage_tokens": [64, 128]}
    every = methods({"channels": [0.25, 0.5, 0.75], "multiple_of": 8}, evolution, 4000)
    every["evopress"] = replace(every["evopress"], search={"name": "evopress", **evolution})
    run = {
        "model": dict(setup.model),
        "calibration": {
            **setup.calibration,
            "heldout_source": setup.heldout[0],
            "heldout_sequences": 4,
        },
        "heal": {"steps": 2, "evaluate_every": 1, "validation_sequences": 2},
        "evaluate": {"prefill": [1, 16], "decode": [8, 4], "repeats": 2, "latency_seconds": 0},
    }
    return Setup(folder / "results", run, every, (0.8,), "body_params", (0, 1))


def _row(setup: Setup, name: str, budget: float, seed: int) -> dict[str, Any]:
    """The healed candidate of a method beside the dense model."""
    own = f"{name}-{100 * budget:03.0f}-{seed}"

    def compute() -> dict[str, Any]:
        run = _healed(setup, own, name, budget, seed)
        rows = json.loads(api.evaluate(run, reporter=Reporter()).read_text())["rows"]
        found = {row["name"]: row for row in rows}
        speeds = {
            engine: speed for engine in setup.engines if (speed := _speed(run, engine)) is not None
        }
        shutil.rmtree(run / "library", ignore_errors=True)
        row = {"method": name, "budget": budget, "seed": seed, "engines": speeds}
        return row | {"dense": found["dense"], "healed": found["healed"]}

    return cell(setup.folder / "cells", own, compute)


def _healed(setup: Setup, own: str, name: str, budget: float, seed: int) -> Path:
    """The run of a cell with its healed checkpoint; what is there already is kept."""
    method = setup.methods[name]
    config = RunConfig.model_validate(
        {
            **setup.run,
            "name": own,
            "runs": setup.folder,
            "seed": seed,
            "space": {**method.space, "budget": {setup.cost: budget}},
            "search": dict(method.search),
            "library": dict(method.library),
            "heal": {**setup.run["heal"], "seed": seed},
        }
    )
    run, reporter = config.folder, Reporter()
    if not (run / "winner.json").exists():
        again = run.exists()
        api.search(config, searcher=method.searcher, resume=again, reporter=reporter)
    if not (run / "checkpoint").exists():
        api.materialize(run, form="hf", reporter=reporter)
    if not (run / "heal" / "heal.json").exists():
        api.heal(run, resume=(run / "heal").exists(), reporter=reporter)
    return run


def _speed(run: Path, engine: str) -> float | None:
    """New tokens per second of the healed checkpoint in a program; none where it is not there."""
    if reason := why_missing(engine):
        print(reason)
        return None
    out = run / PROGRAMS[engine].preferred[0]
    if not out.exists():
        api.materialize(run, out=out, program=engine, healed=True, reporter=Reporter())
    prompts = [[*range(5, 37)]] * 4
    found = generate(engine, out, prompts, new_tokens=NEW_TOKENS, repeats=5)
    return len(prompts) * NEW_TOKENS / statistics.median(found.seconds)


def _values(row: Mapping[str, Any], engines: Mapping[str, float] | None = None) -> Iterator[Any]:
    """The figures of a model by name."""
    yield "kl", row["kl"]
    yield "ppl", row["perplexity"]
    for text in row["texts"]:
        stem = Path(text["source"]).stem
        yield f"kl_{stem}", text["kl"]
        yield f"ppl_{stem}", text["perplexity"]
    accuracies = {score["task"]: score["value"] for score in row["tasks"]}
    yield from ((f"acc_{task}", value) for task, value in accuracies.items())
    if accuracies:
        yield "acc", statistics.fmean(accuracies.values())
    if row.get("decode_ms_per_token"):
        yield "tokens_per_second", 1000 / row["decode_ms_per_token"]["median"]
    if row.get("prefill_ratio"):
        yield "latency", row["prefill_ratio"]["mean"]
    yield from ((f"{name}_tokens_per_second", value) for name, value in (engines or {}).items())


def _figures(setup: Setup, rows: Sequence[Mapping[str, Any]], budget: float) -> dict[str, Figure]:
    """Means and standard deviations over the seeds of one budget, and the best of the others."""
    share = f"{100 * budget:.0f}"
    table = Table("method", title=f"{share}% of {setup.cost}, healed alike", box=SIMPLE)
    found: dict[str, Figure] = {}
    dense = dict(_values(rows[0]["dense"]))
    shown = [key for key in dense if not key.startswith("acc_")]
    for key in shown:
        table.add_column(key)
    table.add_row("dense", *(f"{dense[key]:.4g}" for key in shown))
    for name in setup.methods:
        mine = [dict(_values(r["healed"], r["engines"])) for r in rows if r["method"] == name]
        cells = []
        for key in mine[0]:
            values = [one[key] for one in mine]
            mean = found[f"{name}_{key}_{share}"] = statistics.fmean(values)
            if len(values) > 1:
                found[f"{name}_{key}_{share}_sd"] = statistics.stdev(values)
            if key in shown:
                cells.append(f"{mean:.4g}")
        table.add_row(name, *cells)
    Console().print(table)
    others = [name for name in setup.methods if name != "ours"]
    for key, best in (("kl", min), ("acc", max)):
        known = [found[f"{n}_{key}_{share}"] for n in others if f"{n}_{key}_{share}" in found]
        if known:
            found[f"best_other_{key}_{share}"] = best(float(value or 0) for value in known)
    return found


if __name__ == "__main__":
    main()

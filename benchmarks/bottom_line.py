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
import shutil
import statistics
import tempfile
from collections.abc import Mapping, Sequence
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
from texts import calibration_of, parsed, text_parser
from transformers import PreTrainedModel

from evocompress import api
from evocompress.core.config import RunConfig
from evocompress.core.progress import Reporter, Silent
from evocompress.evaluation.calibration.sources import token_streams
from evocompress.evaluation.heldout import heldout_quality, measure_latency
from evocompress.evaluation.tasks import ask, find_tasks
from evocompress.export import PROGRAMS
from evocompress.export.reload import read_checkpoint
from evocompress.pipeline.context import RunContext
from evocompress.pipeline.run_folder import RunFolder
from evocompress.search.base import Searcher
from evocompress.search.baselines.one_shot import OneShotRemoval
from evocompress.search.generator_searcher import AskTell
from evocompress.testing.engines import generate, why_missing

BUDGETS = (0.7, 0.5)
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
        texts: Files that judge.
        sequences: How many of each.
        tasks: Folder of tasks.
        questions: Of each task.
    """

    folder: Path
    run: Mapping[str, Any]
    methods: Mapping[str, Method]
    budgets: Sequence[float] = BUDGETS
    cost: str = "latency"
    seeds: Sequence[int] = (0, 1, 2)
    engines: Sequence[str] = ()
    texts: Sequence[str] = ()
    sequences: int = 40
    tasks: Path | None = None
    questions: int = 500


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
    parser = text_parser(__doc__.splitlines()[0], "bottom_line")
    parser.add_argument("--tasks", type=Path, help="folder of tasks, NAME.jsonl")
    parser.add_argument("--questions", type=int, default=500, help="of each task")
    parser.add_argument("--tokens", type=int, default=500_000, help="to heal with")
    parser.add_argument("--search-tokens", type=int, default=220_000, help="of each search")
    parser.add_argument("--timings", type=int, default=7, help="of each part of the model")
    parser.add_argument("--methods", nargs="+", help="only these")
    parser.add_argument("--budgets", type=float, nargs="+", default=list(BUDGETS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--engines", nargs="*", default=[], choices=["vllm", "llama.cpp"])
    return parsed(parser)


def _full(arguments: argparse.Namespace) -> Setup:
    channels = [step / 16 for step in range(1, 16)]
    every = methods({"channels": channels, "multiple_of": 64}, {}, arguments.search_tokens)
    wanted = arguments.methods or list(every)
    run = {
        "model": {"source": "demo:smollm2-135m"},
        "calibration": calibration_of(arguments.calibration),
        "heal": {
            "source": {arguments.text: 1.0, arguments.calibration: 1.0},
            "tokens": arguments.tokens,
        },
        "latency": {"repeats": arguments.timings},
        "evaluate": {"latency_seconds": 20},
    }
    return Setup(
        arguments.results,
        run,
        {name: every[name] for name in wanted},
        arguments.budgets,
        seeds=arguments.seeds,
        engines=arguments.engines,
        texts=arguments.heldout,
        sequences=arguments.sequences,
        tasks=arguments.tasks,
        questions=arguments.questions,
    )


def _quick(folder: Path) -> Setup:
    """A tiny random model, texts of its own, and a bound on parameters."""
    setup = quick_setup(folder)
    evolution = {"generations": 2, "offspring": 4, "survivors": [2, 1], "stage_tokens": [64, 128]}
    every = methods({"channels": [0.25, 0.5, 0.75], "multiple_of": 8}, evolution, 4000)
    every["evopress"] = replace(every["evopress"], search={"name": "evopress", **evolution})
    run = {
        "model": dict(setup.model),
        "calibration": dict(setup.calibration),
        "heal": {"steps": 2, "evaluate_every": 1, "validation_sequences": 2},
        "evaluate": {"prefill": [1, 16], "decode": [8, 4], "repeats": 2, "latency_seconds": 0},
    }
    return Setup(
        *(folder / "results", run, every, (0.8,), "body_params", (0, 1)),
        texts=setup.heldout,
        sequences=4,
    )


def _row(setup: Setup, name: str, budget: float, seed: int) -> dict[str, Any]:
    """The healed candidate of a method."""
    own = f"{name}-{100 * budget:03.0f}-{seed}"

    def compute() -> dict[str, Any]:
        run = RunFolder(_healed(setup, own, name, budget, seed))
        context = RunContext(run.config(), run, Silent())
        model = read_checkpoint(run.healed_checkpoint, context.loaded.model)
        row = {"method": name, "budget": budget, "seed": seed} | _judged(setup, context, model)
        for engine in setup.engines:
            if (speed := _speed(run.path, engine)) is not None:
                row[f"{engine}_tokens_per_second"] = speed
        shutil.rmtree(run.path / "library", ignore_errors=True)
        return row

    return cell(setup.folder / "cells", own, compute)


def _dense(setup: Setup) -> dict[str, Any]:
    """The dense model's row."""
    method = next(iter(setup.methods))
    own = f"{method}-{100 * setup.budgets[0]:03.0f}-{setup.seeds[0]}"

    def compute() -> dict[str, Any]:
        run = RunFolder(setup.folder / own)
        context = RunContext(run.config(), run, Silent())
        return _judged(setup, context, context.loaded.model)

    return cell(setup.folder / "cells", "dense", compute)


def _judged(setup: Setup, context: RunContext, model: PreTrainedModel) -> dict[str, Any]:
    """What a model is judged by: texts, tasks, and its speed beside the dense model's."""
    loaded, config = context.loaded, context.config.evaluate
    dense, length = loaded.model, context.config.calibration.length
    assert loaded.tokenizer is not None
    row: dict[str, Any] = {}
    for source in setup.texts:
        tokens = next(iter(token_streams(source, loaded.tokenizer)))
        ids = tokens[: setup.sequences * length].view(-1, length)
        found = heldout_quality(dense, {"it": model}, ids)["it"]
        row |= {f"kl_{Path(source).stem}": found.kl, f"ppl_{Path(source).stem}": found.perplexity}
    row["kl"] = statistics.fmean(value for key, value in row.items() if key.startswith("kl_"))
    if setup.tasks is not None:
        names = sorted(path.stem for path in setup.tasks.glob("*.jsonl"))
        tasks = find_tasks(names, setup.tasks)
        answers = ask(loaded, {"it": model}, tasks, limit=setup.questions)
        right = {
            one.task: float(one.values["it"].mean()) for one in answers if one.measure == "acc"
        }
        row |= {f"acc_{task}": value for task, value in right.items()}
        row["acc"] = statistics.fmean(right.values())
    models = {"dense": dense} | ({"it": model} if model is not dense else {})
    timed = measure_latency(
        models,
        prefill=config.prefill,
        decode=config.decode,
        repeats=config.repeats,
        width=config.ratio_width,
        seconds=config.latency_seconds,
    )["it" if model is not dense else "dense"]
    row["latency"] = timed.prefill.ratio.mean if timed.prefill.ratio else 1.0
    if timed.decode is not None:
        row["tokens_per_second"] = config.decode[1] / timed.decode.median
    return row


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


def _figures(setup: Setup, rows: Sequence[Mapping[str, Any]], budget: float) -> dict[str, Figure]:
    """Means and standard deviations over the seeds of one budget, and the best of the others."""
    share = f"{100 * budget:.0f}"
    table = Table("method", title=f"{share}% of {setup.cost}, healed alike", box=SIMPLE)
    found: dict[str, Figure] = {}
    dense = _dense(setup)
    engines = [f"{engine}_tokens_per_second" for engine in setup.engines]
    shown = [key for key in (*dense, *engines) if not key.startswith("acc_")]
    for key in shown:
        table.add_column(key)
    table.add_row("dense", *(f"{dense[key]:.4g}" if key in dense else "" for key in shown))
    for name in setup.methods:
        mine = [row for row in rows if row["method"] == name]
        cells = []
        for key in (*dense, *engines):
            values = [row[key] for row in mine if key in row]
            if not values:
                continue
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

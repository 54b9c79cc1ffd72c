"""Depth and width baselines against the search, at three sizes of SmolLM2-135M, on WikiText-2.

The parameters of the blocks are brought to 85, 70 and 55%. A seed draws the calibration
sequences of every method: 128 for the level library and 64 for everything that is compared.
Two tables: each method with its native criterion, and all methods with one library, made by
structured OBS, so that allocation and criterion are told apart; in both each compares candidates
by the metric that it was published with. Methods that only remove take nothing from a library:
one run stands in both tables. Held-out quality is measured before any healing on the first 20
sequences of the held-out file. Whole blocks round up: the share of parameters that is left stands
beside each value. MultiPruner's FFN steps are quarters of the width, on half of the tokens: finer
ones would ask for many millions; its first stage asks what BlockPruner asked, and is answered so.

    python benchmarks/structured.py --calibration valid.txt --heldout test.txt --json out.json

Libraries, searches and every measurement are kept in the results folder: an interrupted run goes
on. A seed takes hours on two cores: ``--seeds 0 --json 0.json``, on as many machines as there are
seeds, and ``--join 0.json 1.json 2.json --json out.json`` is the same comparison. ``--quick`` does
it in a minute on a tiny random model and text of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import Figure, emit
from contest import BUDGETS, SHARED, Method, Seed, Setup
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from evocompress.core.config import ModelConfig
from evocompress.core.progress import Reporter
from evocompress.models.loading import load

DEPTH = {"drop": {"units": ["block"], "protect": []}}
SUBLAYERS = {"drop": {"units": ["attention", "mlp"], "protect": []}}
QUARTERS = (0.25, 0.5, 0.75)


def main() -> None:
    """Runs or continues the comparison and prints its figures."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as scratch:
        setup = _quick(Path(scratch)) if arguments.quick else _full(arguments)
        seeds = [0] if arguments.quick else arguments.seeds
        rows = _read(arguments.join) if arguments.join else _measured(setup, seeds)
        found = _figures(setup, rows)
        _tables(setup.methods, found)
        figures: dict[str, Figure] = dict(found)
        emit("structured", figures, arguments.json)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calibration", help="text file from which the seeds draw")
    parser.add_argument("--heldout", help="text file for the held-out sequences")
    parser.add_argument("--results", type=Path, default=Path("results/structured"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", help="only these")
    parser.add_argument("--join", type=Path, nargs="+", help="figures of single seeds, as JSON")
    parser.add_argument("--json")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    texts = arguments.calibration and arguments.heldout
    if not (arguments.quick or arguments.join or texts):
        parser.error("give --calibration and --heldout, or --join, or --quick")
    return arguments


def _methods(
    channels: tuple[float, ...],
    multiple_of: int,
    search: Mapping[str, Any],
    tokens: tuple[int, int],
) -> dict[str, Method]:
    """The contestants; `tokens` are those on which greedy methods try units, and widths."""
    width = {"channels": channels, "multiple_of": multiple_of}
    free = {"width": {**width, "protect": []}, **SUBLAYERS}
    # Every step tries every layer: in small steps MultiPruner would ask for many millions.
    coarse = {"width": {**width, "channels": QUARTERS, "protect": []}, **SUBLAYERS}
    tried = {"candidate_tokens": tokens[0]}
    steps = {"width_tokens": tokens[1]}
    return {
        "uniform": Method({"name": "uniform"}, {"width": {**width, "uniform": True}}, "minitron"),
        "shortgpt": Method({"name": "shortgpt"}, DEPTH),
        "sleb": Method({"name": "sleb", **tried}, DEPTH, metric="perplexity"),
        "blockpruner": Method({"name": "blockpruner", **tried}, SUBLAYERS, metric="perplexity"),
        "flap": Method({"name": "flap"}, free, "flap"),
        "multipruner": Method(
            {"name": "multipruner", **tried, **steps}, coarse, "magnitude", "perplexity"
        ),
        "search": Method(search, {"width": width, "drop": {"units": ["attention", "mlp"]}}),
    }


def _full(arguments: argparse.Namespace) -> Setup:
    channels = tuple(step / 16 for step in range(1, 16))
    search = {"name": "auto", "tokens": 220_000}
    methods = _methods(channels, 96, search, (1024, 512))
    chosen = arguments.methods or list(methods)
    return Setup(
        model={"source": "demo:smollm2-135m", "dtype": "auto"},
        calibration={
            "library_sequences": 128,
            "search_sequences": 64,
            "heldout_sequences": 20,
            "length": 512,
            "micro_batch": 1,
        },
        channels=channels,
        multiple_of=96,
        methods={name: methods[name] for name in chosen},
        text=arguments.calibration,
        heldout=arguments.heldout,
        results=arguments.results,
    )


def _quick(folder: Path) -> Setup:
    from evocompress.testing.tiny import tiny_checkpoint

    text = folder / "text.txt"
    text.write_text(" ".join(f"word{number * number % 97}" for number in range(4000)))
    heldout = folder / "heldout.txt"
    heldout.write_text(" ".join(f"word{number * number % 89}" for number in range(400)))
    search = {
        "name": "evopress",
        "generations": 3,
        "offspring": 8,
        "survivors": (2, 1),
        "stage_tokens": (64, 256),
    }
    channels = QUARTERS
    return Setup(
        model={"source": str(tiny_checkpoint(folder / "model", "llama"))},
        calibration={
            "library_sequences": 8,
            "search_sequences": 16,
            "heldout_sequences": 4,
            "length": 32,
            "micro_batch": 2,
        },
        channels=channels,
        multiple_of=8,
        methods=_methods(channels, 8, search, (64, 64)),
        text=str(text),
        heldout=str(heldout),
        results=folder / "results",
    )


def _measured(setup: Setup, seeds: Sequence[int]) -> list[dict[str, float]]:
    """The figures of each seed."""
    reporter = Reporter()
    model = ModelConfig.model_validate(setup.model)
    loaded = load(model.source, dtype=model.dtype)
    return [Seed(setup, seed, loaded, reporter).figures() for seed in seeds]


def _read(files: Sequence[Path]) -> list[dict[str, float]]:
    """The figures that earlier runs, of one seed each, wrote."""
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        sys.exit(f"there is no file {missing[0]}: --join takes what --json wrote")
    rows = [json.loads(file.read_text())["figures"] for file in files]
    for file, row in zip(files, rows, strict=True):
        if row["seeds"] != 1:
            sys.exit(f"{file} is of {row['seeds']} seeds: join files of one seed each")
        if row.keys() != rows[0].keys():
            sys.exit(f"{file} is of other methods than {files[0]}: join files of the same ones")
    return rows


def _figures(setup: Setup, rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over the seeds of every quality, and the margins of the search."""
    figures: dict[str, float] = {"seeds": len(rows)}
    for key in (key for key in rows[0] if "margin" not in key and key != "seeds"):
        values = [row[key] for row in rows]
        figures[key] = statistics.fmean(values)
        if len(values) > 1 and "kl_" in key:
            figures[f"sd_{key}"] = statistics.stdev(values)
    return figures | _margins(setup.methods, figures)


def _margins(methods: Mapping[str, Method], figures: Mapping[str, float]) -> dict[str, float]:
    """The best baseline's held-out KL less the search's, in both tables."""
    margins: dict[str, float] = {}
    baselines = methods.keys() - {"search"}
    for prefix in ("", "native_") if baselines and "search" in methods else ():
        for budget in BUDGETS:
            suffix = f"{100 * budget:03.0f}"
            best = min(figures[f"{prefix}kl_{name}_{suffix}"] for name in baselines)
            ours = figures[f"{prefix}kl_search_{suffix}"]
            margins[f"{prefix}margin_{suffix}"] = best - ours
    return margins


def _tables(methods: Mapping[str, Method], figures: Mapping[str, float]) -> None:
    """Prints both tables of held-out KL, each with the share of parameters that is left."""
    titles = {"": f"one library ({SHARED})", "native_": "native criteria"}
    for prefix, title in titles.items():
        table = Table("held-out KL (parameters)", title=title, box=SIMPLE)
        for budget in BUDGETS:
            table.add_column(f"{budget:.2f}")
        for name in methods:
            keys = [f"{name}_{100 * budget:03.0f}" for budget in BUDGETS]
            shown = [(figures[f"{prefix}kl_{k}"], figures[f"{prefix}params_{k}"]) for k in keys]
            table.add_row(name, *(f"{kl:.4f} ({share:.3f})" for kl, share in shown))
        Console().print(table)


if __name__ == "__main__":
    main()

"""Which search finds the best bits for every matrix? On SmolLM2-135M with permuted channels.

Every matrix of the blocks gets 2 to 8 bits with a scale for 64 inputs, GPTQ, so many bits per
weight in all. Methods, all in one level library:

- ``uniform``: the even allocation, finer types spread over the depth where bits are left;
- additive ones, whose harms are summed up once: ``output_errors`` (of each matrix alone,
  weighed by its inputs, after HIGGS and Quark), ``fisher`` (second-order harms at the dense model,
  after PrismaQuant and the gradient score of AutoQuantize), ``curves`` (the loss measured with each
  matrix at each type alone, as AutoScheme and the second score of AutoQuantize have it);
- ``auto`` on 220,000 tokens, and EvoPress's search on three times as many.

Judged on held-out text by the KL to the dense model. ``gain_over_best_additive`` is how much lower
that of `auto` is than the least of the additive ones, paired over sequences and seeds.

    python benchmarks/bits.py --calibration wikitext2-valid.txt --heldout wikitext2-test.txt
        --json bits.json

Every method, budget and seed is a cell that is kept in the results folder: an interrupted run goes
on. ``--methods``, ``--bits`` and ``--seeds`` take some; ``--quick`` does all on a tiny model.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from cells import cell
from common import Figure, emit
from healing import quick_setup
from permuted import permuted_copy
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from texts import calibration_of, parsed, text_parser

from evocompress import api
from evocompress.core.config import RunConfig
from evocompress.core.progress import Reporter, Silent
from evocompress.evaluation.calibration.sources import token_streams
from evocompress.evaluation.heldout import heldout_quality
from evocompress.export import materialize
from evocompress.export.reload import read_checkpoint
from evocompress.pipeline.context import RunContext
from evocompress.pipeline.run_folder import RunFolder

TYPES = tuple(f"w{bits}g64" for bits in (2, 3, 4, 5, 6, 8))
BITS = (3.0, 3.5, 4.0, 4.5)
ADDITIVE = ("output_errors", "fisher", "curves")
RESAMPLINGS = 2000


@dataclass(frozen=True)
class Setup:
    """What is searched and judged on.

    Attributes:
        folder: Of models, runs and cells.
        run: Settings that all runs have, without model and calibration's draw.
        source: The model, before its channels are permuted.
        methods: Settings of the search by name.
        types: Of the matrices.
        bits: Budgets.
        seeds: Of searches, of the order of channels, and of the calibration's draw.
        heldout: A text file.
        sequences: How many of it judge.
    """

    folder: Path
    run: Mapping[str, Any]
    source: str
    methods: Mapping[str, Mapping[str, Any]]
    types: Sequence[str]
    bits: Sequence[float]
    seeds: Sequence[int]
    heldout: str
    sequences: int


def methods(tokens: int, probe: int, estimate: int) -> dict[str, dict[str, Any]]:
    """Settings of the searches: tokens of `auto`, of one thing measured, and of an estimate."""
    return {
        "uniform": {"name": "uniform", "candidate_tokens": probe},
        "output_errors": {"name": "evopress_dp", "candidate_tokens": probe},
        "fisher": {
            "name": "fisher_knapsack",
            "estimate_tokens": estimate,
            "candidate_tokens": probe,
        },
        "curves": {
            "name": "distortion_dp",
            "levels": len(TYPES),
            "probe_tokens": probe,
            "candidate_tokens": probe,
        },
        "auto": {"name": "auto", "tokens": tokens},
        "evopress": {"name": "evopress", "tokens": 3 * tokens},
    }


def main() -> None:
    """Searches or reads every cell and prints the table."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as scratch:
        setup = _quick(Path(scratch)) if arguments.quick else _full(arguments)
        cells = product(setup.bits, setup.methods, setup.seeds)
        rows = [_row(setup, name, bits, seed) for bits, name, seed in cells]
        emit("bits", _figures(setup, rows), arguments.json)


def _arguments() -> argparse.Namespace:
    parser = text_parser(__doc__.splitlines()[0], "bits", heals=False)
    parser.add_argument("--tokens", type=int, default=220_000, help="of auto")
    parser.add_argument("--methods", nargs="+", help="only these")
    parser.add_argument("--bits", type=float, nargs="+", default=list(BITS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    return parsed(parser)


def _full(arguments: argparse.Namespace) -> Setup:
    every = methods(arguments.tokens, 512, 24 * 512)
    return Setup(
        folder=arguments.results,
        run={"calibration": calibration_of(arguments.calibration)},
        source="demo:smollm2-135m",
        methods={name: every[name] for name in arguments.methods or every},
        types=TYPES,
        bits=arguments.bits,
        seeds=arguments.seeds,
        heldout=arguments.heldout[0],
        sequences=arguments.sequences,
    )


def _quick(folder: Path) -> Setup:
    """A tiny random model, and few tokens."""
    quick = quick_setup(folder)
    every = methods(4000, 64, 128)
    stages = {"generations": 2, "offspring": 4, "survivors": [2, 1], "stage_tokens": [64, 128]}
    every["evopress"] = {"name": "evopress", **stages}
    return Setup(
        folder=quick.folder,
        run={"calibration": dict(quick.calibration)},
        source=str(quick.model["source"]),
        methods=every,
        types=("w2g32", "w3g32", "w4g32"),
        bits=(3.2,),
        seeds=(0, 1),
        heldout=quick.heldout[0],
        sequences=4,
    )


def _row(setup: Setup, name: str, bits: float, seed: int) -> dict[str, Any]:
    """The winner of a method, judged."""
    own = f"{name}-{bits:g}-{seed}"
    return cell(setup.folder / "cells", own, partial(_computed, setup, own, name, bits, seed))


def _computed(setup: Setup, own: str, name: str, bits: float, seed: int) -> dict[str, Any]:
    model = permuted_copy(setup.source, seed, setup.folder / "models")
    settings = {
        **setup.run,
        "name": own,
        "runs": str(setup.folder / "runs"),
        "seed": seed,
        "model": {"source": str(model)},
        "calibration": {**setup.run["calibration"], "seed": seed},
        "library": {"path": str(setup.folder / f"library-{seed}")},
        "space": {"bits": {"types": list(setup.types)}, "budget": {"bits_per_weight": bits}},
        "search": dict(setup.methods[name]),
    }
    config = RunConfig.model_validate(settings)
    run = RunFolder(config.folder)
    if not (run.path / "winner.json").exists():
        api.search(config, resume=run.path.exists(), reporter=Reporter())
    context = RunContext(run.config(), run, Silent())
    winner = run.read_winner()
    dense, length = context.loaded.model, context.config.calibration.length
    assert context.loaded.tokenizer is not None
    tokens = next(iter(token_streams(setup.heldout, context.loaded.tokenizer)))
    ids = tokens[: setup.sequences * length].view(-1, length)
    written = materialize(
        context.loaded, context.library, winner.candidate, run.path / "judged", format="stock"
    )
    found = heldout_quality(dense, {"it": read_checkpoint(written, dense)}, ids)["it"]
    shutil.rmtree(written)
    return {
        "method": name,
        "bits": bits,
        "seed": seed,
        "kl": found.kl,
        "kl_per_sequence": list(found.kl_per_sequence),
        "ppl": found.perplexity,
        "stored": context.space.costs(context.space.genome(winner.candidate)[None])[
            "bits_per_weight"
        ].item(),
    }


def _figures(setup: Setup, rows: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    """Means over the seeds, and the gain over the best additive method with its interval."""
    table = Table("method", *(f"{bits:g} bits" for bits in setup.bits), box=SIMPLE)
    figures: dict[str, Figure] = {}
    for name in setup.methods:
        means = [float(np.mean(_values(rows, name, bits))) for bits in setup.bits]
        figures |= {f"{name}_kl_{b:g}": kl for b, kl in zip(setup.bits, means, strict=True)}
        table.add_row(name, *(f"{kl:.4f}" for kl in means))
    Console().print(table)
    additive = [name for name in ADDITIVE if name in setup.methods]
    if "auto" in setup.methods and additive:
        for bits in setup.bits:
            best = min(additive, key=lambda name: float(np.mean(_values(rows, name, bits))))
            ours, theirs = _values(rows, "auto", bits), _values(rows, best, bits)
            low, high = _interval(ours, theirs)
            figures |= {
                f"best_additive_{bits:g}": best,
                f"gain_over_best_additive_{bits:g}": 1 - float(ours.mean() / theirs.mean()),
                f"gain_over_best_additive_{bits:g}_low": low,
                f"gain_over_best_additive_{bits:g}_high": high,
            }
    return figures


def _values(rows: Sequence[Mapping[str, Any]], name: str, bits: float) -> Any:
    """The KL of every sequence (seeds, sequences)."""
    mine = [row for row in rows if (row["method"], row["bits"]) == (name, bits)]
    return np.array([row["kl_per_sequence"] for row in mine])


def _interval(ours: Any, theirs: Any) -> tuple[float, float]:
    """95% of the gains when seeds and sequences are drawn again, the same for both."""
    rng = np.random.default_rng(0)
    seeds, sequences = ours.shape
    gains = []
    for _ in range(RESAMPLINGS):
        drawn = np.ix_(rng.integers(seeds, size=seeds), rng.integers(sequences, size=sequences))
        gains.append(1 - ours[drawn].mean() / theirs[drawn].mean())
    low, high = np.quantile(gains, [0.025, 0.975])
    return float(low), float(high)


if __name__ == "__main__":
    main()

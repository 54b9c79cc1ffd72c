"""One search over drops, widths and bits, or one thing after the other? On SmolLM2-135M, permuted.

At each size of the file, a share of the dense one:

- ``joint``: `auto` over dropped sub-layers, widths and types, all at once;
- ``bits``: `auto` over types alone; ``uniform``: the even allocation of types;
- ``pruned 0.9`` and so on: `auto` first leaves that share of the blocks' parameters by drops and
  widths, and then finds the best types of what is left, for the bytes that are left.

All have the same text, types and rounding, and `auto` the same tokens in every search, so that the
pruned ones have twice as many; their second search takes the pruned model for the dense one, as
tools do that quantize what others pruned. Judged by the KL to the dense model on held-out text, as
found and after the same healing, by that model's outputs. ``sequential`` is the best pruned one.
What cannot be so small has no figure.

    python benchmarks/joint.py --calibration wikitext2-valid.txt --text books-train.txt
        --heldout wikitext2-test.txt --json joint.json

Every search and every judgement is kept in the results folder: an interrupted run goes on.
``--methods``, ``--sizes`` and ``--seeds`` take some; ``--quick`` does all on a tiny model.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from bits import TYPES
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
from evocompress.core.errors import BudgetError
from evocompress.core.progress import Reporter
from evocompress.evaluation.calibration.sources import token_streams
from evocompress.evaluation.heldout import heldout_quality
from evocompress.export.record import read_record
from evocompress.export.reload import read_checkpoint
from evocompress.models.loading import load
from evocompress.pipeline.run_folder import RunFolder

SIZES = (0.6, 0.45, 0.3)
SPLITS = (0.9, 0.8, 0.7, 0.6)
MEASURES = ("kl", "healed_kl")


@dataclass(frozen=True)
class Setup:
    """What is searched, healed and judged on.

    Attributes:
        folder: Of models, runs and cells.
        run: Settings that all runs have.
        source: The model, before its channels are permuted.
        bits: The types.
        cuts: Drops and widths.
        tokens: Of each search.
        methods: By name.
        sizes: Shares of the dense bytes.
        seeds: Of searches, of the order of channels, and of the calibration's draw.
        heldout: A text file that judges.
        sequences: How many of it.
        heals: Whether the candidates are healed as well.
    """

    folder: Path
    run: Mapping[str, Any]
    source: str
    bits: Mapping[str, Any]
    cuts: Mapping[str, Any]
    tokens: int
    methods: Sequence[str]
    sizes: Sequence[float]
    seeds: Sequence[int]
    heldout: str
    sequences: int
    heals: bool = True


def pruned(share: float) -> str:
    """The name of pruning to a share of the parameters before types are searched."""
    return f"pruned {share:g}"


def main() -> None:
    """Makes or reads every cell and prints the tables."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as scratch:
        setup = _quick(Path(scratch)) if arguments.quick else _full(arguments)
        cells = product(setup.sizes, setup.methods, setup.seeds)
        rows = [_row(setup, name, size, seed) for size, name, seed in cells]
        emit("joint", _figures(setup, rows), arguments.json)


def _arguments() -> argparse.Namespace:
    every = ["joint", "bits", "uniform", *map(pruned, SPLITS)]
    parser = text_parser(__doc__.splitlines()[0], "joint")
    parser.add_argument("--tokens", type=int, default=500_000, help="to heal with; 0 heals nothing")
    parser.add_argument("--search-tokens", type=int, default=220_000, help="of each search")
    parser.add_argument("--methods", nargs="+", default=every, choices=every)
    parser.add_argument("--sizes", type=float, nargs="+", default=list(SIZES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    return parsed(parser)


def _full(arguments: argparse.Namespace) -> Setup:
    mixed = {arguments.text: 1.0, arguments.calibration: 1.0}
    return Setup(
        folder=arguments.results,
        run={
            "calibration": calibration_of(arguments.calibration),
            "heal": {"source": mixed, "tokens": arguments.tokens or 1},
        },
        source="demo:smollm2-135m",
        bits={"types": ["dense", *TYPES], "scope": ["matrices", "embeddings"]},
        cuts={
            "drop": {"units": ["attention", "mlp"]},
            "width": {
                "channels": [0.875, 0.75, 0.5],
                "kv_groups": [2],
                "group_heads": [3],
                "multiple_of": 64,
            },
        },
        tokens=arguments.search_tokens,
        methods=arguments.methods,
        sizes=arguments.sizes,
        seeds=arguments.seeds,
        heldout=arguments.heldout[0],
        sequences=arguments.sequences,
        heals=arguments.tokens > 0,
    )


def _quick(folder: Path) -> Setup:
    """A tiny random model, and few tokens."""
    quick = quick_setup(folder)
    return Setup(
        folder=quick.folder,
        run={
            "calibration": dict(quick.calibration),
            "heal": {"steps": 2, "evaluate_every": 1, "validation_sequences": 2},
        },
        source=str(quick.model["source"]),
        bits={"types": ["dense", "w8g32", "w4g32", "w2g32"], "scope": ["matrices", "embeddings"]},
        cuts={
            "drop": {"units": ["attention", "mlp"]},
            "width": {"channels": [0.5], "multiple_of": 32},
        },
        tokens=4000,
        methods=("joint", "bits", "uniform", pruned(0.9)),
        sizes=(0.6,),
        seeds=(0,),
        heldout=quick.heldout[0],
        sequences=4,
    )


def _row(setup: Setup, name: str, size: float, seed: int) -> dict[str, Any]:
    """What a method finds for a size, judged."""
    own = f"{name}-{100 * size:g}-{seed}".replace(" ", "-")
    compute = partial(_judged, setup, own, name, size, seed)
    return cell(setup.folder / "cells", own, compute)


def _judged(setup: Setup, own: str, name: str, size: float, seed: int) -> dict[str, Any]:
    """Searches, heals, and compares with the dense model; or says why nothing is so small."""
    source = permuted_copy(setup.source, seed, setup.folder / "models")
    dense = load(str(source))
    whole = sum(parameter.numel() for parameter in dense.model.parameters())
    bound = size * whole * dense.stored.itemsize
    row: dict[str, Any] = {"method": name, "size": size, "seed": seed}
    try:
        run = _found(setup, own, name, bound, seed, source)
    except BudgetError as error:
        print(f"{name} at {size:.0%}: {error}")
        return row | {"reason": str(error)}
    checkpoints = {"kl": run / "checkpoint"}
    if setup.heals:
        if not (run / "heal" / "heal.json").exists():
            api.heal(run, resume=(run / "heal").exists(), reporter=Reporter())
        checkpoints["healed_kl"] = RunFolder(run).healed_checkpoint
    assert dense.tokenizer is not None
    length = setup.run["calibration"]["length"]
    tokens = next(iter(token_streams(setup.heldout, dense.tokenizer)))
    ids = tokens[: setup.sequences * length].view(-1, length)
    for measure, path in checkpoints.items():
        models = {"it": read_checkpoint(path, dense.model)}
        row[measure] = heldout_quality(dense.model, models, ids)["it"].kl
    return row


def _found(setup: Setup, own: str, name: str, bound: float, seed: int, source: Path) -> Path:
    """The run whose winner has at most so many bytes, with its checkpoint."""
    space: dict[str, Any] = {"bits": setup.bits, "budget": {"weight_bytes": bound}}
    library = f"library-{seed}"
    if name == "joint":
        space |= setup.cuts
        library = f"library-joint-{seed}"
    elif name.startswith("pruned"):
        share = float(name.split()[1])
        cut = {**setup.cuts, "budget": {"body_params": share}}
        first = _searched(
            setup, f"pruned-{share:g}-{seed}", cut, seed, source, f"library-cuts-{seed}"
        )
        left = read_record(first / "checkpoint").measured["weight_bytes"]
        space["budget"] = {"weight_bytes": min(bound, left)}
        return _searched(
            setup, own, space, seed, first / "checkpoint", f"library-{share:g}-{seed}", source
        )
    return _searched(setup, own, space, seed, source, library, uniform=name == "uniform")


def _searched(
    setup: Setup,
    own: str,
    space: Mapping[str, Any],
    seed: int,
    source: Path,
    library: str,
    teacher: Path | None = None,
    *,
    uniform: bool = False,
) -> Path:
    """A run with its winner's checkpoint; what is there already is kept."""
    searches = {"name": "uniform"} if uniform else {"name": "auto", "tokens": setup.tokens}
    config = RunConfig.model_validate(
        {
            **setup.run,
            "name": own,
            "runs": str(setup.folder / "runs"),
            "seed": seed,
            "model": {"source": str(source)},
            "calibration": {**setup.run["calibration"], "seed": seed},
            "library": {"path": str(setup.folder / library)},
            "space": dict(space),
            "search": searches,
            "heal": {**setup.run["heal"], "seed": seed, "teacher": teacher and str(teacher)},
        }
    )
    if not (config.folder / "winner.json").exists():
        api.search(config, resume=config.folder.exists(), reporter=Reporter())
    if not (config.folder / "checkpoint").exists():
        api.materialize(config.folder, form="hf", reporter=Reporter())
    return config.folder


def _figures(setup: Setup, rows: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    """Means over the seeds, by method and size, as found and healed."""
    figures: dict[str, Figure] = {}
    for measure in MEASURES if setup.heals else MEASURES[:1]:
        table = Table(measure, *(f"{size:.0%}" for size in setup.sizes), box=SIMPLE)
        means = {
            (name, size): statistics.fmean(values)
            for name, size in product(setup.methods, setup.sizes)
            if (values := _values(rows, measure, name, size))
        }
        for name in setup.methods:
            own = (means.get((name, size)) for size in setup.sizes)
            table.add_row(name, *("-" if kl is None else f"{kl:.4f}" for kl in own))
        Console().print(table)
        for (name, size), kl in means.items():
            key = {"bits": "bits_only"}.get(name, name.replace(" ", "_"))
            figures[f"{key}_{measure}_{100 * size:g}"] = kl
        for size in setup.sizes:
            split = [kl for (name, at), kl in means.items() if "pruned" in name and at == size]
            if split:
                figures[f"sequential_{measure}_{100 * size:g}"] = min(split)
    return figures


def _values(rows: Sequence[Mapping[str, Any]], measure: str, name: str, size: float) -> list[float]:
    """Of each seed; none where one cannot be so small."""
    found = [row.get(measure) for row in rows if (row["method"], row["size"]) == (name, size)]
    values = [kl for kl in found if kl is not None]
    return values if len(values) == len(found) else []


if __name__ == "__main__":
    main()

"""Published EvoPress on SmolLM2-135M at 50% unstructured sparsity, on WikiText-2.

SparseGPT library from the first 128 sequences of 512 tokens of the calibration file, 20,736
weights between levels, six levels up and down; then EvoPress (16 offspring; survivors 4, 1;
tokens 1024, 4096) on the next 64 sequences, 18 generations, about 659,000 requested tokens.
Held-out quality is measured on the first 20 sequences of the held-out file.

    python benchmarks/sparsity50.py --calibration valid.txt --heldout test.txt --json out.json

Library, search and every measurement are kept in the results folder: an interrupted run goes on.
``--quick`` does the same in a minute on a tiny random model and text of its own.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cells import cell
from common import Figure, emit
from rich.console import Console

from evocompress import api
from evocompress.compression.live_model import LiveModel
from evocompress.core.config import RunConfig
from evocompress.core.progress import Reporter
from evocompress.core.types import Candidate
from evocompress.evaluation.heldout import heldout_quality
from evocompress.pipeline.context import RunContext
from evocompress.pipeline.run_folder import RunFolder
from evocompress.space import sampling

CHECKPOINTS = {"217k": 6, "438k": 12, "659k": 18}
"""Names of the published checkpoints and the generations after which they are read."""

KNOWN = {"uniform": 0.4587, "217k": 0.4422, "438k": 0.4268, "659k": 0.4171}
"""Held-out top-256 KL seen elsewhere, one seed."""

REQUESTED_PER_GENERATION = 16 * 1024 + 5 * 4096


def main() -> None:
    """Runs or continues the comparison and prints its figures."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.quick:
            results, configs = Path(scratch), _quick_configs(Path(scratch), arguments.seeds)
        else:
            results, configs = arguments.results, _configs(arguments)
        figures = _figures(results, configs)
        emit("sparsity50", figures | ({} if arguments.quick else _ratios(figures)), arguments.json)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calibration", help="text file for library and search")
    parser.add_argument("--heldout", help="text file for the held-out sequences")
    parser.add_argument("--results", type=Path, default=Path("results/sparsity50"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    if not arguments.quick and not (arguments.calibration and arguments.heldout):
        parser.error("give --calibration and --heldout, or --quick")
    return arguments


def _configs(arguments: argparse.Namespace) -> list[RunConfig]:
    tokens = REQUESTED_PER_GENERATION * max(CHECKPOINTS.values())
    Console().print(
        f"Estimate on two cores: library 5 minutes, then {tokens:,} requested tokens for each of "
        f"{arguments.seeds} seed(s), at 900 tokens/s {tokens / 900 / 60:.0f} minutes each"
    )
    return [
        _config(
            seed,
            arguments.results,
            model={"source": "demo:smollm2-135m", "dtype": "auto"},
            calibration={
                "source": arguments.calibration,
                "heldout_source": arguments.heldout,
                "library_sequences": 128,
                "search_sequences": 64,
                "heldout_sequences": 20,
                "length": 512,
                "micro_batch": 2,
            },
            sparsity={"target": 0.5, "step": 20736, "levels": 6},
            tokens=(1024, 4096),
        )
        for seed in range(arguments.seeds)
    ]


def _quick_configs(folder: Path, seeds: int) -> list[RunConfig]:
    from evocompress.testing.tiny import tiny_checkpoint

    source = tiny_checkpoint(folder / "model", "llama")
    text = folder / "text.txt"
    text.write_text(" ".join(f"word{number * number % 97}" for number in range(4000)))
    return [
        _config(
            seed,
            folder / "results",
            model={"source": str(source)},
            calibration={
                "source": str(text),
                "library_sequences": 8,
                "search_sequences": 16,
                "heldout_sequences": 4,
                "length": 32,
                "micro_batch": 2,
            },
            sparsity={"target": 0.5, "step": 64, "levels": 6},
            tokens=(64, 256),
        )
        for seed in range(seeds)
    ]


def _config(
    seed: int,
    results: Path,
    *,
    model: Mapping[str, Any],
    calibration: Mapping[str, Any],
    sparsity: Mapping[str, Any],
    tokens: tuple[int, int],
) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": f"seed{seed}",
            "runs": results,
            "seed": seed,
            "model": model,
            "calibration": calibration,
            "space": {"sparsity": sparsity},
            "library": {"path": results / "library"},
            "search": {
                "name": "evopress",
                "generations": max(CHECKPOINTS.values()),
                "offspring": 16,
                "survivors": (4, 1),
                "stage_tokens": tokens,
            },
        }
    )


def _figures(results: Path, configs: list[RunConfig]) -> dict[str, Figure]:
    reporter = Reporter()
    rows = [_seed(results, config, reporter) for config in configs]
    figures: dict[str, Figure] = {}
    for key in rows[0]:
        values = [row[key] for row in rows]
        figures[key] = statistics.fmean(values)
        if len(values) > 1 and not key.startswith(("uniform", "dense")):
            figures[f"{key}_sd"] = statistics.stdev(values)
    return figures


def _ratios(figures: Mapping[str, Figure]) -> dict[str, Figure]:
    """Our held-out top-256 KL over the known one, for each known figure."""
    ratios: dict[str, Figure] = {}
    for name, known in KNOWN.items():
        ours = figures["uniform_kl_top256" if name == "uniform" else f"kl_{name}_top256"]
        assert isinstance(ours, float)
        ratios[f"{name}_vs_known"] = ours / known
    return ratios


def _seed(results: Path, config: RunConfig, reporter: Reporter) -> dict[str, float]:
    """The figures of one search: quality of uniform, dense and the three checkpoints."""
    resume = RunFolder(config.folder).path.exists()
    folder = RunFolder(api.search(config, resume=resume, reporter=reporter))
    context = RunContext(config, folder, reporter)
    found: dict[str, float] = {}
    for name, candidate, tokens in _candidates(context):
        quality = cell(results / "quality", candidate.id, lambda c=candidate: _measure(context, c))
        prefix = "uniform_" if name == "uniform" else ""
        suffix = "" if name == "uniform" else f"_{name}"
        found[f"{prefix}kl{suffix}"] = quality["kl"]
        found[f"{prefix}kl{suffix}_top256"] = quality["kl_top256"]
        found[f"{prefix}ppl{suffix}"] = quality["perplexity"]
        if name == "uniform":
            found["dense_ppl"] = quality["dense_perplexity"]
        else:
            found[f"tokens_{name}"] = tokens
    return found


def _candidates(context: RunContext) -> Iterator[tuple[str, Candidate, int]]:
    """(name, candidate, requested tokens) of the uniform start and of each checkpoint."""
    yield "uniform", context.space.candidate(sampling.uniform(context.space)), 0
    records = [json.loads(line) for line in context.folder.journal.read_text().splitlines()]
    levels = {r["id"]: r["levels"] for r in records if r["type"] == "candidate"}
    steps = [r for r in records if r["type"] == "step"]
    stages = len(context.config.search.settings["survivors"])
    for name, generation in CHECKPOINTS.items():
        step = steps[generation * stages - 1]
        yield name, Candidate.from_json(levels[step["incumbent"]]), step["requested"]


def _measure(context: RunContext, candidate: Candidate) -> dict[str, float]:
    dense = context.loaded.model
    twin = copy.deepcopy(dense)
    LiveModel(replace(context.loaded, model=twin), context.existing_library()).apply(candidate)
    models = {"dense": dense, "candidate": twin}
    quality = heldout_quality(dense, models, context.calibration.heldout)
    return {
        "kl": quality["candidate"].kl,
        "kl_top256": quality["candidate"].kl_topk,
        "perplexity": quality["candidate"].perplexity,
        "dense_perplexity": quality["dense"].perplexity,
    }


if __name__ == "__main__":
    main()

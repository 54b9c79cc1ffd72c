"""How well a latency table tells the latency of whole models that it was not made from.

A table is measured anew as `evocompress profile` does it, or read from ``--table``. Then random
candidates (dropped sub-layers, fewer heads, fewer channels, in any mixture), whose predicted
latencies are spread evenly over 0.4 to 1.0 of the dense model's, are timed in turns with the
dense model, which runs before and after each. None of them was used for the table.

Figures, of the prefill and with ``decode_`` of a decoding step: `median_abs_error` of the
predicted fraction of the dense latency, as a fraction of the measured one (aim: at most 0.05);
`median_error`, the same with its sign; `largest_abs_error`; `rank_correlation` (Spearman) of
predicted and measured fractions (aim: at least 0.95); the shortest and longest measured fraction;
`spread`, slowest minus fastest turn of a candidate, the median over candidates.

    python benchmarks/latency_model.py --json latency_model.json
    python benchmarks/latency_model.py --quick
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import Figure, emit
from rich.console import Console

from evocompress.compression.live_model import LiveModel
from evocompress.core.config import LatencyConfig
from evocompress.core.progress import Reporter
from evocompress.core.types import Candidate
from evocompress.evaluation.profile import profile, timing
from evocompress.evaluation.profile.first_items import FirstItems
from evocompress.evaluation.profile.fit import seconds
from evocompress.evaluation.profile.layouts import grid, layout_candidate
from evocompress.evaluation.profile.random_layouts import random_layouts
from evocompress.evaluation.profile.turns import Ratios, measure_ratios
from evocompress.models.loading import LoadedModel, load
from evocompress.space.costs import cost_model
from evocompress.space.costs.latency import LatencyTable, Phase
from evocompress.testing.tiny import tiny_loaded

Figures = dict[str, Figure]

TINY = "tiny"
SEED = 1
"""Of the candidates; the table's own random models come from another."""


def main() -> None:
    """Measure, print and write."""
    arguments = _arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    loaded = _load(arguments.model)
    with tempfile.TemporaryDirectory() as scratch:
        config = _config(arguments, Path(scratch))
        start = time.perf_counter()
        with Reporter(Console()).stage("latency table") as advance:
            table = profile(loaded, config, progress=advance)
        figures: Figures = {
            "model": arguments.model,
            "dtype": table.made.dtype,
            "device": table.made.device,
            "profile_seconds": time.perf_counter() - start,
        }
    emit("latency_model", figures | _comparison(arguments, loaded, table), arguments.json)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--quick", action="store_true", help="a tiny random model")
    parser.add_argument("--model", default="demo:smollm2-135m")
    parser.add_argument("--table", type=Path, help="table to read, or to keep what is measured")
    parser.add_argument("--batch", type=int, default=1, help="sequences")
    parser.add_argument("--tokens", type=int, default=512, help="of a prompt")
    parser.add_argument("--context", type=int, default=128, help="tokens before a decoding step")
    parser.add_argument("--candidates", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=7, help="turns")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU; 0 is torch's choice")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.model, arguments.tokens, arguments.context = TINY, 64, 16
        arguments.candidates, arguments.repeats, arguments.threads = 4, 3, 1
    return arguments


def _load(source: str) -> LoadedModel:
    """The model in the dtype that a run would give it; the tiny one in float32."""
    if source == TINY:
        return tiny_loaded()
    return load(source)


def _config(arguments: argparse.Namespace, scratch: Path) -> LatencyConfig:
    return LatencyConfig(
        prefill=(arguments.batch, arguments.tokens),
        decode=(arguments.batch, arguments.context),
        repeats=arguments.repeats,
        validation=arguments.candidates,
        table=arguments.table or scratch / "table.json",
    )


def _comparison(arguments: argparse.Namespace, loaded: LoadedModel, table: LatencyTable) -> Figures:
    """The figures of both phases."""
    prefill = timing.prefill(loaded.model, *table.made.prefill)
    decode = timing.decoding(loaded.model, *table.made.decode, graph=table.decode.graph)
    parts = {
        "": Part("latency", "prefill", table.prefill, prefill),
        "decode_": Part("decode_latency", "decoding step", table.decode, decode),
    }
    figures: Figures = {}
    for prefix, part in parts.items():
        candidates = _candidates(loaded, part.phase, arguments.candidates)
        predicted = _predicted(loaded, table, part.cost, candidates)
        measured = _measured(loaded, part.run, candidates, arguments.repeats)
        _print(part, predicted, measured)
        found = _figures(part.phase, predicted, measured)
        figures |= {f"{prefix}{key}": value for key, value in found.items()}
    return figures


@dataclass(frozen=True)
class Part:
    """One phase: its cost, its name in print, its table, and what times it."""

    cost: str
    name: str
    phase: Phase
    run: timing.Timer


def _candidates(loaded: LoadedModel, phase: Phase, count: int) -> list[Candidate]:
    """Random candidates whose predicted times are spread evenly over 0.4 to 1.0."""
    family, model = loaded.family, loaded.model
    widths, units = grid(family.architecture(model)), family.units(model)
    rng = np.random.default_rng(SEED)
    layouts = random_layouts(widths, count, partial(seconds, phase), rng)
    return [layout_candidate(layout, widths.dense, units) for layout in layouts]


def _predicted(
    loaded: LoadedModel, table: LatencyTable, cost: str, candidates: Sequence[Candidate]
) -> list[float]:
    """Fractions of the dense latency that the search would count with."""
    family, model = loaded.family, loaded.model
    costs = cost_model(family.units(model), family.architecture(model), latency=table)
    fractions: list[float] = (costs.of(candidates)[cost] / costs.dense()[cost]).tolist()
    return fractions


def _measured(
    loaded: LoadedModel, run: timing.Timer, candidates: Sequence[Candidate], repeats: int
) -> Ratios:
    """Measured fractions of the dense latency."""
    with LiveModel(loaded, FirstItems(loaded)) as live:
        return measure_ratios(live.apply, run, candidates, repeats=repeats, step=lambda: None)


def _print(part: Part, predicted: Sequence[float], measured: Ratios) -> None:
    print(f"{part.name}, {part.phase.batch} x {part.phase.tokens} tokens")
    print("predicted  measured   error  spread")
    for expected, found, spread in zip(predicted, measured.medians, measured.spreads, strict=True):
        print(f"{expected:9.3f} {found:9.3f} {expected / found - 1:+7.1%} {spread / found:7.1%}")


def _figures(phase: Phase, predicted: Sequence[float], measured: Ratios) -> Figures:
    pairs = list(zip(predicted, measured.medians, strict=True))
    errors = [expected / found - 1 for expected, found in pairs]
    return {
        "batch": phase.batch,
        "tokens": phase.tokens,
        "dense_ms": 1e3 * measured.dense,
        "median_abs_error": statistics.median(map(abs, errors)),
        "median_error": statistics.median(errors),
        "largest_abs_error": max(map(abs, errors)),
        "rank_correlation": _rank_correlation(predicted, measured.medians),
        "shortest": min(measured.medians),
        "longest": max(measured.medians),
        "spread": statistics.median(measured.spreads),
        "table_scale": phase.scale,
        "table_median_abs_error": statistics.median(map(abs, phase.errors)),
    }


def _rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's coefficient; times have no ties."""
    ranks = [np.argsort(np.argsort(values)) for values in (first, second)]
    return float(np.corrcoef(ranks)[0, 1])


if __name__ == "__main__":
    main()

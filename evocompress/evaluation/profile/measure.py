"""Measures the latency table of a model on the device it is on."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Protocol

import numpy as np
from transformers import PreTrainedModel

from evocompress.core.architecture import Architecture
from evocompress.core.config import LatencyConfig
from evocompress.core.progress import Advance
from evocompress.core.types import Candidate, Unit
from evocompress.evaluation.heldout.latency import check_context
from evocompress.evaluation.profile import timing
from evocompress.evaluation.profile.fit import corrected, fit_parts, seconds
from evocompress.evaluation.profile.layouts import (
    Grid,
    ModelWidths,
    grid,
    layout_candidate,
    measured_layouts,
)
from evocompress.evaluation.profile.random_layouts import random_layouts
from evocompress.evaluation.profile.tables import circumstances
from evocompress.evaluation.profile.turns import WARM_UP_TURNS, Ratios, measure_ratios
from evocompress.models.loading import LoadedModel
from evocompress.space.costs.latency import LatencyTable, Phase

VALIDATION_SEED = 0


class Live(Protocol):
    """A model that takes the form of any candidate: `compression.live_model.LiveModel`."""

    def apply(self, candidate: Candidate) -> None:
        """Make the model the candidate."""


@dataclass(frozen=True)
class Bench:
    """What is timed, in turns that count and with random models that check the sums.

    `step` is called after each timing of a candidate.
    """

    live: Live
    units: Sequence[Unit]
    widths: Grid
    repeats: int
    validation: int
    step: Callable[[], None]

    @property
    def timings(self) -> int:
        """How often a candidate is timed for one phase."""
        layouts = len(measured_layouts(self.widths)) + self.validation
        return layouts * (WARM_UP_TURNS + self.repeats)

    def ratios(self, run: timing.Timer, layouts: Sequence[ModelWidths]) -> Ratios:
        """Times of layouts as fractions of the dense model's."""
        dense = self.widths.dense
        candidates = [layout_candidate(layout, dense, self.units) for layout in layouts]
        return measure_ratios(
            self.live.apply, run, candidates, repeats=self.repeats, step=self.step
        )


def check_timed_lengths(config: LatencyConfig, architecture: Architecture) -> None:
    """Whether the texts to be timed fit into a model; of images only the batch counts.

    Raises:
        ConfigError: The prompt, or the cache after the timed steps, is longer.
    """
    decode = config.decode[1] + timing.UNTIMED_STEPS + timing.STEPS
    check_context("latency", config.prefill[1], decode, architecture, "lower its length")


def measure(
    loaded: LoadedModel, config: LatencyConfig, live: Live, *, progress: Advance
) -> LatencyTable:
    """Measure a model's latency table, which takes some minutes.

    Args:
        loaded: The model, dense.
        config: Batch, lengths and repeats.
        live: The same model, with a library that has every width; it is left dense.
        progress: Told how far it is.

    Raises:
        ConfigError: A length is beyond the model's context.
    """
    model, architecture = loaded.model, loaded.family.architecture(loaded.model)
    check_timed_lengths(config, architecture)
    units, widths, done = loaded.family.units(model), grid(architecture), count(1)

    def step() -> None:
        timed, total = next(done), (2 if architecture.causal else 1) * bench.timings
        progress(timed, total, f"{timed} of {total} timings")

    bench = Bench(live, units, widths, config.repeats, config.validation, step)
    kind = timing.prefill if architecture.causal else partial(timing.forward, loaded.family.task)
    prefill = measure_phase(bench, kind(model, *config.prefill), config.prefill)
    decode = _measure_decoding(bench, model, config) if architecture.causal else None
    return LatencyTable(circumstances(loaded, config), prefill, decode)


def _measure_decoding(bench: Bench, model: PreTrainedModel, config: LatencyConfig) -> Phase:
    graph = timing.can_be_captured(model)
    run = timing.decoding(model, *config.decode, graph=graph)
    return measure_phase(bench, run, config.decode, graph=graph)


def measure_phase(
    bench: Bench, run: timing.Timer, lengths: tuple[int, int], *, graph: bool = False
) -> Phase:
    """Measure the parts of one phase, and check and correct their sums.

    `run` is timed on `lengths`, sequences and tokens of each, and replays a CUDA graph or not.
    """
    dense, layouts = bench.widths.dense, measured_layouts(bench.widths)
    found = bench.ratios(run, layouts)
    draft = fit_parts(bench.widths, [dense, *layouts], [1.0, *found.medians], lengths)
    rng = np.random.default_rng(VALIDATION_SEED)
    checks = random_layouts(bench.widths, bench.validation, partial(seconds, draft), rng)
    checked = bench.ratios(run, checks)
    unit = statistics.median([found.dense, checked.dense])
    phase = corrected(draft, dense, checks, checked.medians, unit)
    spread = statistics.median([*found.spreads, *checked.spreads])
    return replace(phase, spread=spread, graph=graph)

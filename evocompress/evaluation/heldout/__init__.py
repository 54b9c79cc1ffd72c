"""What is reported of a finished model, measured on real models by code of its own."""

from evocompress.evaluation.heldout.counts import Counts, count
from evocompress.evaluation.heldout.flops import count_flops
from evocompress.evaluation.heldout.latency import Latency, Timing, check_lengths, measure_latency
from evocompress.evaluation.heldout.outputs import output_quality
from evocompress.evaluation.heldout.quality import Quality, heldout_quality
from evocompress.evaluation.heldout.ratios import Ratio, in_turns, ratio

__all__ = [
    "Counts",
    "Latency",
    "Quality",
    "Ratio",
    "Timing",
    "check_lengths",
    "count",
    "count_flops",
    "heldout_quality",
    "in_turns",
    "measure_latency",
    "output_quality",
    "ratio",
]

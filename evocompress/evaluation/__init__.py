"""What is reported of a finished model, measured on real models by code of its own."""

from evocompress.evaluation.counts import Counts, count
from evocompress.evaluation.flops import count_flops
from evocompress.evaluation.latency import Latency, Timing, check_lengths, measure_latency
from evocompress.evaluation.outputs import output_quality
from evocompress.evaluation.quality import Quality, heldout_quality

__all__ = [
    "Counts",
    "Latency",
    "Quality",
    "Timing",
    "check_lengths",
    "count",
    "count_flops",
    "heldout_quality",
    "measure_latency",
    "output_quality",
]

"""Estimates: what a few forward or backward passes say about every unit at once."""

from __future__ import annotations

from evocompress.evaluation.estimates.angular_distance import (
    angular_distance,
    last_angular_distance,
)
from evocompress.evaluation.estimates.base import Estimator
from evocompress.evaluation.estimates.block_influence import block_influence
from evocompress.evaluation.estimates.expert_output_error import expert_output_error
from evocompress.evaluation.estimates.fluctuation import fluctuation
from evocompress.evaluation.estimates.lamp import lamp
from evocompress.evaluation.estimates.linear import curvature, linearised, slope
from evocompress.evaluation.estimates.magnitude import magnitude
from evocompress.evaluation.estimates.outliers import outliers
from evocompress.evaluation.estimates.output_error import output_error
from evocompress.evaluation.estimates.perturbation import perturbation
from evocompress.evaluation.estimates.pq_index import pq_index
from evocompress.evaluation.estimates.routing_frequency import routing_frequency
from evocompress.evaluation.estimates.tail_exponent import tail_exponent
from evocompress.evaluation.estimates.taylor import taylor

__all__ = ["ESTIMATES"]

ESTIMATES: dict[str, Estimator] = {
    "block_influence": block_influence,
    "angular_distance": angular_distance,
    "last_angular_distance": last_angular_distance,
    "fluctuation": fluctuation,
    "taylor": taylor,
    "curvature": curvature,
    "slope": slope,
    "linearised": linearised,
    "magnitude": magnitude,
    "lamp": lamp,
    "outliers": outliers,
    "tail_exponent": tail_exponent,
    "perturbation": perturbation,
    "pq_index": pq_index,
    "output_error": output_error,
    "routing_frequency": routing_frequency,
    "expert_output_error": expert_output_error,
}

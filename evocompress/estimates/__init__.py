"""Estimates: what a few forward or backward passes say about every unit at once."""

from __future__ import annotations

from evocompress.estimates.angular_distance import angular_distance, last_angular_distance
from evocompress.estimates.base import Estimator
from evocompress.estimates.block_influence import block_influence
from evocompress.estimates.expert_output_error import expert_output_error
from evocompress.estimates.fluctuation import fluctuation
from evocompress.estimates.lamp import lamp
from evocompress.estimates.linear import curvature, linearised, slope
from evocompress.estimates.magnitude import magnitude
from evocompress.estimates.outliers import outliers
from evocompress.estimates.output_error import output_error
from evocompress.estimates.perturbation import perturbation
from evocompress.estimates.pq_index import pq_index
from evocompress.estimates.routing_frequency import routing_frequency
from evocompress.estimates.tail_exponent import tail_exponent
from evocompress.estimates.taylor import taylor

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

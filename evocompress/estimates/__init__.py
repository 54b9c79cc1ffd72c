"""Estimates: what a few forward or backward passes say about every unit at once."""

from __future__ import annotations

from evocompress.estimates.angular_distance import angular_distance, last_angular_distance
from evocompress.estimates.base import Estimator
from evocompress.estimates.block_influence import block_influence
from evocompress.estimates.fluctuation import fluctuation
from evocompress.estimates.taylor import taylor

__all__ = ["ESTIMATES"]

ESTIMATES: dict[str, Estimator] = {
    "block_influence": block_influence,
    "angular_distance": angular_distance,
    "last_angular_distance": last_angular_distance,
    "fluctuation": fluctuation,
    "taylor": taylor,
}

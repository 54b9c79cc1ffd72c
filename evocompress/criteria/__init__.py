"""Criteria: one interface (`base.Criterion`), one file per method; they know no model."""

from evocompress.criteria import magnitude, sparsegpt, wanda
from evocompress.criteria.base import Criterion, Statistics

__all__ = ["CRITERIA", "Criterion", "Statistics"]

CRITERIA: dict[str, Criterion] = {
    "magnitude": Criterion(needs="nothing", compress=magnitude.compress),
    "wanda": Criterion(needs="squares", compress=wanda.compress),
    "sparsegpt": Criterion(needs="gram", compress=sparsegpt.compress),
}

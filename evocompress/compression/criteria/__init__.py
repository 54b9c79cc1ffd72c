"""Criteria for single weights and for whole heads and channels; they know no model.

`CRITERIA` give matrices zeros (`base.Criterion`), `STRUCTURED` narrow sub-layers
(`structure.StructuredCriterion`); one file per method. `REFINEMENTS` repair what the former left.
"""

from evocompress.compression.criteria import (
    flap,
    magnitude,
    magnitude_structured,
    minitron,
    obs_structured,
    sparsegpt,
    taylor,
    wanda,
    wanda_structured,
)
from evocompress.compression.criteria.base import Criterion, Statistics, unseen
from evocompress.compression.criteria.liar import reconstructed
from evocompress.compression.criteria.refinements import REFINEMENTS, RefinedCriteria
from evocompress.compression.criteria.structure import Cut, Structure, StructuredCriterion, Width
from evocompress.core.registry import Registry

__all__ = [
    "CRITERIA",
    "REFINEMENTS",
    "STRUCTURED",
    "Criterion",
    "Cut",
    "Statistics",
    "Structure",
    "StructuredCriterion",
    "Width",
    "reconstructed",
    "unseen",
]

CRITERIA: Registry[Criterion] = RefinedCriteria(
    "criterion",
    "evocompress.criteria",
    {
        "magnitude": Criterion(needs="nothing", compress=magnitude.compress),
        "wanda": Criterion(needs="squares", compress=wanda.compress),
        "sparsegpt": Criterion("gram", sparsegpt.compress, sparsegpt.compress_together),
    },
    lambda found: isinstance(found, Criterion),
)

STRUCTURED: Registry[StructuredCriterion] = Registry(
    "criterion",
    "evocompress.structured_criteria",
    {
        "magnitude": StructuredCriterion(frozenset(), False, magnitude_structured.cut),
        "wanda": StructuredCriterion(frozenset({"squares"}), False, wanda_structured.cut),
        "minitron": StructuredCriterion(frozenset({"magnitudes"}), False, minitron.cut),
        "taylor": StructuredCriterion(frozenset({"gradients"}), False, taylor.cut),
        "flap": StructuredCriterion(frozenset({"squares", "sums"}), True, flap.cut),
        "obs_structured": StructuredCriterion(frozenset({"gram"}), False, obs_structured.cut),
    },
    lambda found: isinstance(found, StructuredCriterion),
)

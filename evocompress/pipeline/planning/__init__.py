"""How long a run takes and what it needs, foretold from the model's config alone."""

from evocompress.pipeline.planning.device import DEVICES, Device
from evocompress.pipeline.planning.here import HERE, plan_on
from evocompress.pipeline.planning.measure import measured
from evocompress.pipeline.planning.outline import outline
from evocompress.pipeline.planning.plan import Plan, make_plan, preflight
from evocompress.pipeline.planning.stages import StagePlan
from evocompress.pipeline.planning.text import plan_notes, plan_rows

__all__ = [
    "DEVICES",
    "HERE",
    "Device",
    "Plan",
    "StagePlan",
    "make_plan",
    "measured",
    "outline",
    "plan_notes",
    "plan_on",
    "plan_rows",
    "preflight",
]

"""How long a run takes and what it needs, foretold from the model's config alone."""

from evocompress.planning.device import DEVICES, Device
from evocompress.planning.here import HERE, plan_on
from evocompress.planning.measure import measured
from evocompress.planning.outline import outline
from evocompress.planning.plan import Plan, make_plan, preflight
from evocompress.planning.stages import Stage
from evocompress.planning.text import plan_notes, plan_rows

__all__ = [
    "DEVICES",
    "HERE",
    "Device",
    "Plan",
    "Stage",
    "make_plan",
    "measured",
    "outline",
    "plan_notes",
    "plan_on",
    "plan_rows",
    "preflight",
]

"""A plan as a table and notes."""

from __future__ import annotations

from collections.abc import Iterator

from evocompress.pipeline.planning.plan import GIB, Plan
from evocompress.pipeline.planning.stages import StagePlan
from evocompress.pipeline.planning.work import Work

MINUTE = 60
HOUR = 60 * MINUTE
DAY = 24 * HOUR


def plan_rows(plan: Plan) -> list[list[str]]:
    """The heading and a row for each stage, the last one for all together."""
    shared = plan.device.shared
    places = ["memory"] if shared else ["device memory", "main memory"]
    rows = [["stage", "time", *places, "disk"]]
    rows += [
        [stage.name, _time(plan.seconds(stage)), *_sizes(stage, shared)] for stage in plan.stages
    ]
    total = StagePlan(
        "all",
        sum((stage.work for stage in plan.stages), Work()),
        max(stage.device_bytes for stage in plan.stages),
        max(stage.main_bytes for stage in plan.stages),
        sum(stage.disk_bytes for stage in plan.stages),
    )
    return [*rows, [total.name, _time(sum(map(plan.seconds, plan.stages))), *_sizes(total, shared)]]


def plan_notes(plan: Plan) -> Iterator[str]:
    """What the table does not say."""
    yield (
        f"Model: {plan.weights / GIB:,.2f} GiB of weights. Device: {plan.device.name}, "
        f"{plan.device.memory / GIB:,.0f} GiB."
    )
    yield from plan.advice
    yield from plan.notes


def _sizes(stage: StagePlan, shared: bool) -> list[str]:
    places = [stage.device_bytes, stage.main_bytes]
    places = [sum(places)] if shared else places
    return [f"{size / GIB:,.2f} GiB" for size in (*places, stage.disk_bytes)]


def _time(seconds: float) -> str:
    for unit, size in (("d", DAY), ("h", HOUR), ("min", MINUTE)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"

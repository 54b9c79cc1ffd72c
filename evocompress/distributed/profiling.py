"""Measuring a latency table in a task on Ray that nothing disturbs."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from evocompress.core.config import LatencyConfig, RunConfig
from evocompress.distributed.cluster import anchored
from evocompress.distributed.exclusive_task import ExclusiveTask, Tell, run_alone
from evocompress.distributed.replica import Replica

if TYPE_CHECKING:
    from evocompress.core.progress import Advance
    from evocompress.evaluation.profile import MeasureTable
    from evocompress.models.loading import LoadedModel
    from evocompress.space.costs import LatencyTable

SPEAK_SECONDS = 2.0
"""Between two words of progress, which take the time of the node that is timed."""


def ray_table(config: RunConfig, say: Callable[[str], None]) -> MeasureTable:
    """A table that is measured on a Ray cluster: alone on a GPU, or with all CPUs of a node."""

    def measure(loaded: LoadedModel, latency: LatencyConfig, progress: Advance) -> LatencyTable:
        import torch

        replica = Replica(anchored(config.model), loaded.fingerprint, torch.get_num_threads())
        task = ExclusiveTask(
            partial(_measure, replica, latency),
            name="the latency table",
            quiet_node=True,
            again="the same command tries again",
        )
        found: LatencyTable = run_alone(config, task, lambda step: progress(*step), say)
        return found

    return measure


def _measure(replica: Replica, latency: LatencyConfig, tell: Tell) -> LatencyTable:
    """The table of the device of this process."""
    from evocompress.evaluation.profile import measure_here

    return measure_here(replica.load(), latency, _seldom(tell))


def _seldom(tell: Tell) -> Advance:
    """Tells of a step now and then."""
    last = time.monotonic()

    def advance(*step: Any) -> None:
        nonlocal last
        if time.monotonic() - last >= SPEAK_SECONDS:
            last = time.monotonic()
            tell(step)

    return advance

"""Ray: requests, level libraries, latency tables and healings on a cluster, and sweeps.

Ray is imported only in this room, and only when there is work for it.

Interface: `backend_of`, `RayBackend`.

Imported by: `api`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from evocompress.pipeline.context import Backend, Local, RunContext

if TYPE_CHECKING:
    from evocompress.compression.library.builder import MakeBlocks
    from evocompress.compression.live_model import LiveModel
    from evocompress.core.circumstances import Admit
    from evocompress.core.config import RunConfig
    from evocompress.evaluation.profile import MeasureTable
    from evocompress.pipeline.loop import Executor
    from evocompress.pipeline.short_healing import HealEach

__all__ = ["RayBackend", "backend_of"]


class RayBackend:
    """The work of a run on a Ray cluster, which is imported when there is some.

    Examples:
        >>> from evocompress.core.config import RunConfig
        >>> run = RunConfig(name="a", model={"source": "b"}, space={"drop": {}}, executor="ray")
        >>> type(backend_of(run)).__name__
        'RayBackend'
    """

    def executor(self, context: RunContext, live: LiveModel, admit: Admit) -> Executor:
        """Workers that each hold the model."""
        from evocompress.distributed.actors import ray_executor

        return ray_executor(context, live, admit)

    def blocks(self, context: RunContext) -> MakeBlocks:
        """Tasks that each make some blocks of the level library."""
        from evocompress.distributed.libraries import ray_blocks

        return ray_blocks(context.config, context.reporter.say)

    def table(self, context: RunContext) -> MeasureTable:
        """A task with a GPU, or all CPUs of a node, to itself."""
        from evocompress.distributed.profiling import ray_table

        return ray_table(context.config, context.reporter.say)

    def healing(self, context: RunContext) -> HealEach:
        """Tasks that each heal one candidate, as many at a time as there is room for."""
        from evocompress.distributed.healing import ray_short_healing

        return ray_short_healing(context.config, context.folder.path, context.reporter)


def backend_of(config: RunConfig) -> Backend:
    """Where a run's work is done."""
    return RayBackend() if config.executor == "ray" else Local()

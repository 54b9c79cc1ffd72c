"""Where requests are evaluated, libraries built and latency tables measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from evocompress.distributed.actors import ray_executor
from evocompress.distributed.libraries import Say, local_blocks, ray_blocks
from evocompress.distributed.local import LocalExecutor
from evocompress.distributed.profiling import local_table, ray_table

if TYPE_CHECKING:
    from evocompress.apply import LiveModel
    from evocompress.circumstances import Admit
    from evocompress.config import RunConfig
    from evocompress.library.builder import MakeBlocks
    from evocompress.profile import Measure
    from evocompress.run import Executor
    from evocompress.workbench import Workbench


def local_executor(bench: Workbench, live: LiveModel, admit: Admit) -> Executor:
    """Evaluation in this process, the machine of which needs no admission."""
    return LocalExecutor(bench.proxy(live), bench.estimates(live))


EXECUTORS: dict[str, Callable[[Workbench, LiveModel, Admit], Executor]] = {
    "local": local_executor,
    "ray": ray_executor,
}

LIBRARY_BUILDERS: dict[str, Callable[[RunConfig, Say], MakeBlocks]] = {
    "local": local_blocks,
    "ray": ray_blocks,
}
"""By the same names."""

TABLE_MAKERS: dict[str, Callable[[RunConfig, Say], Measure]] = {
    "local": local_table,
    "ray": ray_table,
}
"""By the same names."""

__all__ = [
    "EXECUTORS",
    "LIBRARY_BUILDERS",
    "TABLE_MAKERS",
    "LocalExecutor",
    "local_executor",
    "ray_executor",
]

"""Where requests are evaluated."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from evocompress.distributed.actors import ray_executor
from evocompress.distributed.local import LocalExecutor

if TYPE_CHECKING:
    from evocompress.apply import LiveModel
    from evocompress.run import Executor
    from evocompress.workbench import Workbench


def local_executor(bench: Workbench, live: LiveModel) -> Executor:
    """Evaluation in this process."""
    return LocalExecutor(bench.proxy(live), bench.estimates(live))


EXECUTORS: dict[str, Callable[[Workbench, LiveModel], Executor]] = {
    "local": local_executor,
    "ray": ray_executor,
}

__all__ = ["EXECUTORS", "LocalExecutor", "local_executor", "ray_executor"]

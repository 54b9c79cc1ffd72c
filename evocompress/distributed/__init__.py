"""Where requests are evaluated."""

from evocompress.distributed.local import LocalExecutor

EXECUTORS = {"local": LocalExecutor}

__all__ = ["EXECUTORS", "LocalExecutor"]

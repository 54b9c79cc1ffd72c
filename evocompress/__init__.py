"""Find how to compress a pretrained transformer, and do it.

The names below are loaded on first use, so that ``import evocompress`` stays fast
and imports neither torch nor ray.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evocompress.api import evaluate, heal, materialize, report, search
    from evocompress.models import load
    from evocompress.types import Candidate, Level, Unit

__version__ = "0.1.0"

_HOMES = {
    "load": "evocompress.models",
    "search": "evocompress.api",
    "materialize": "evocompress.api",
    "heal": "evocompress.api",
    "evaluate": "evocompress.api",
    "report": "evocompress.api",
    "Candidate": "evocompress.types",
    "Level": "evocompress.types",
    "Unit": "evocompress.types",
}

__all__ = [
    "Candidate",
    "Level",
    "Unit",
    "__version__",
    "evaluate",
    "heal",
    "load",
    "materialize",
    "report",
    "search",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'evocompress' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)

"""Level libraries: the compressed weights of every (unit, level), made once."""

from evocompress.compression.library.build import build_library, check_library
from evocompress.compression.library.plan import LibraryPlan, plan_library
from evocompress.compression.library.store import Library, open_library

__all__ = [
    "Library",
    "LibraryPlan",
    "build_library",
    "check_library",
    "open_library",
    "plan_library",
]

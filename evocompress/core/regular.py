"""Regular files: of a pipe, socket or device reading may wait for ever."""

from __future__ import annotations

import stat
from pathlib import Path

from evocompress.core.errors import EvoCompressError, RunError

OTHERS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
"""What else a path may be, by the type of its mode."""


def check_regular(path: Path, kind: type[EvoCompressError] = RunError) -> None:
    """Refuse to open what is neither a file nor a folder; what is missing is not told here."""
    try:
        other = OTHERS.get(stat.S_IFMT(path.stat().st_mode))
    except (OSError, ValueError):
        return
    if other is not None:
        raise kind(f"{path} is {other}, not a file: put a regular file there")

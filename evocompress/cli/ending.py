"""How a command ends that was interrupted, or that fails for a reason the user can mend."""

from __future__ import annotations

import sys

from evocompress.core.errors import EvoCompressError
from evocompress.core.processes import is_first
from evocompress.core.stopping import SIGNALS

INTERRUPTED = 130  # the exit status after Ctrl-C, as shells have it


def can_mend(error: Exception) -> bool:
    """Whether an error is one that the user can mend."""
    from evocompress.core.files import errno_of

    return isinstance(error, EvoCompressError | OSError) or errno_of(error) is not None


def told_interrupt(came: int) -> int:
    """Says how a command that was interrupted goes on; its exit status, as shells have it."""
    word = SIGNALS.get(came, "interrupted")
    if is_first():
        print(f"{word}: search, heal, rounds and sweep go on with --resume", file=sys.stderr)
    return 128 + came if came in SIGNALS else INTERRUPTED

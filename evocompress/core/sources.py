"""Which version of this program and of the libraries something was found with."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.metadata import version
from pathlib import Path

LIBRARIES = ("evocompress", "transformers", "torch")


@cache
def versions_of(*rooms: str) -> tuple[str, ...]:
    """The versions of the libraries, and a digest of the code of some folders of the package.

    Examples:
        >>> len(versions_of("core"))
        4
    """
    digest, root = hashlib.blake2b(digest_size=12), Path(__file__).parents[1]
    for room in rooms:
        for path in sorted((root / room).rglob("*.py")):
            digest.update(path.read_bytes())
    return (*map(version, LIBRARIES), digest.hexdigest())


def digest_of(text: str) -> str:
    """A short name for a text.

    Examples:
        >>> len(digest_of("what a file depends on"))
        24
    """
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()

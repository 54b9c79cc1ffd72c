"""Whether a folder that is about to be unpickled was made at this place by this user.

Tune's state can hold any code, and a sweep's folder may come from someone else. So the path of a
folder is signed, with a key that never leaves the user's cache folder. What is in the folder is
not: this is no protection from who can write into it.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from pathlib import Path

from evocompress.core.files import cache_folder, replacing

KEY = "sweep-key"
SIGNATURE = "origin"


def sign(folder: Path) -> None:
    """Makes a folder that `is_own` will know."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SIGNATURE).write_text(_signature(folder, _key(make=True)))


def is_own(folder: Path) -> bool:
    """Whether `sign` made the folder at this path; its files may be anybody's."""
    path = folder / SIGNATURE
    if not path.is_file() or not (cache_folder() / KEY).is_file():
        return False
    found = path.read_bytes()
    return hmac.compare_digest(found, _signature(folder, _key()).encode())


def _signature(folder: Path, key: bytes) -> str:
    return hmac.new(key, str(folder.resolve()).encode(), hashlib.sha256).hexdigest()


def _key(*, make: bool = False) -> bytes:
    """The user's key, which others cannot read."""
    path = cache_folder() / KEY
    if make and not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.chmod(0o600)
            temporary.write_bytes(secrets.token_bytes(32))
    return path.read_bytes()

"""Which cases of a large grid `make test` runs; `make test-all` runs them all."""

from collections.abc import Iterable
from typing import Any

import pytest

from evocompress.testing.tiny import VARIED


def by_tier(names: Iterable[str]) -> list[Any]:
    """Names of families as parameters; those that are like another one are marked as long."""
    return [
        name if name in VARIED else pytest.param(name, marks=pytest.mark.long) for name in names
    ]

from __future__ import annotations

import pytest

from evocompress.testing.narrowing import NarrowingContract
from evocompress.testing.tiny import NAMES


@pytest.mark.parametrize("name", NAMES)
class TestNarrowing(NarrowingContract):
    pass

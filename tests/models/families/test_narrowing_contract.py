from __future__ import annotations

import pytest

from evocompress.models.families import FAMILIES
from evocompress.testing.narrowing import NarrowingContract


@pytest.mark.parametrize("name", FAMILIES.built_in)
class TestNarrowing(NarrowingContract):
    pass

import pytest

from evocompress.compression.criteria import STRUCTURED
from evocompress.testing.structured import SHAPES, STRUCTURED_CHECKS


@pytest.mark.parametrize("check", STRUCTURED_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", STRUCTURED.built_in)
def test_contract(name, shape, check):
    check(STRUCTURED[name], SHAPES[shape])

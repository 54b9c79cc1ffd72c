import pytest

from evocompress.compression.criteria import CRITERIA
from evocompress.testing.criteria import CHECKS, CHECKS_WITH_DEAD_INPUTS

REFINED = ("magnitude+swaps", "wanda+update", "sparsegpt+swaps+update")


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", [*CRITERIA.built_in, *REFINED])
def test_contract(name, check):
    check(CRITERIA[name])


@pytest.mark.parametrize("check", CHECKS_WITH_DEAD_INPUTS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("dead", [1, 30, 150])
@pytest.mark.parametrize("name", [*CRITERIA.built_in, *REFINED])
def test_contract_with_dead_inputs(name, dead, check):
    check(CRITERIA[name], dead)

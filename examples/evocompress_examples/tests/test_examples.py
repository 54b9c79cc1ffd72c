"""Every example keeps the contract of its kind, as evocompress.testing has it."""

from __future__ import annotations

import pytest

from evocompress.compression.criteria import CRITERIA, STRUCTURED
from evocompress.core.errors import ModelError
from evocompress.evaluation.proxies import PROXIES
from evocompress.models.families import FAMILIES
from evocompress.models.loading import LoadedModel
from evocompress.testing import criteria, proxies, structured
from evocompress.testing.families import FamilyContract
from evocompress.testing.formats import FormatContract
from evocompress.testing.narrowing import NarrowingContract
from evocompress.testing.tiny import tiny_loaded, tiny_model


@pytest.mark.parametrize("check", criteria.CHECKS)
def test_criterion(check):
    check(CRITERIA["ria"])


@pytest.mark.parametrize("shape", structured.SHAPES)
@pytest.mark.parametrize("check", structured.STRUCTURED_CHECKS)
def test_structured_criterion(check, shape):
    check(STRUCTURED["output_norm"], structured.SHAPES[shape])


@pytest.mark.parametrize("name", ["olmo"])
class TestFamily(FamilyContract):
    pass


@pytest.mark.parametrize("name", ["olmo"])
class TestNarrowing(NarrowingContract):
    pass


def test_family_refuses_what_it_does_not_know():
    model = tiny_model("olmo")
    model.config.clip_qkv = 8.0
    with pytest.raises(ModelError, match="clip_qkv"):
        FAMILIES["olmo"].check(model)


def flips(dense, logits, ids, top_k):
    """Positions at which the likeliest token is another one, by sorting (R,)."""
    return (dense.argsort(-1)[:, -1] != logits.argsort(-1)[:, -1]).double()


class TestProxy:
    def test_it_gives_what_brute_force_gives(self):
        reference = proxies.Reference(flips)
        proxies.check_matches_reference(PROXIES["flips"], reference, tiny_loaded())

    def test_company_does_not_matter(self):
        proxies.check_company_does_not_matter(PROXIES["flips"], tiny_loaded())

    def test_it_stops_when_hopeless(self):
        proxies.check_stops_when_hopeless(PROXIES["flips"], tiny_loaded())

    def test_the_dense_model_flips_nothing(self):
        proxies.check_dense_has_no_divergence(PROXIES["flips"], tiny_loaded())


@pytest.fixture(scope="module", params=["llama", "olmo"])
def loaded(request) -> LoadedModel:
    return tiny_loaded(request.param, layers=4)


@pytest.mark.parametrize("format", ["per_block"])
class TestFormat(FormatContract):
    pass

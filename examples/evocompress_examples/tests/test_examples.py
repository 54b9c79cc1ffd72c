"""Every example keeps the contract of its kind, as evocompress.testing has it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from evocompress.compression.criteria import CRITERIA, STRUCTURED
from evocompress.core.requests import Pool
from evocompress.core.space_config import SpaceConfig
from evocompress.evaluation.proxies import PROXIES
from evocompress.models.loading import LoadedModel
from evocompress.search import SEARCHERS
from evocompress.search.base import Problem, Searcher
from evocompress.space.build import build_space
from evocompress.space.space import SearchSpace
from evocompress.testing import criteria, proxies, searchers, structured
from evocompress.testing.families import FamilyContract
from evocompress.testing.formats import FormatContract
from evocompress.testing.narrowing import NarrowingContract
from evocompress.testing.tiny import tiny_loaded

POOL = Pool((64,) * 8)


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    """A tiny Llama that loses sub-layers, to a budget."""
    loaded = tiny_loaded(layers=8)
    config = {"drop": {"units": ["attention", "mlp"]}, "budget": {"body_params": 0.6}}
    units = loaded.family.units(loaded.model)
    architecture = loaded.family.architecture(loaded.model)
    return build_space(units, architecture, SpaceConfig.model_validate(config))


@pytest.fixture
def make(space) -> Callable[[], Searcher]:
    searcher = SEARCHERS["hill_climb"]
    settings = searcher.Settings.model_validate({"steps": 12})
    return lambda: searcher(Problem(space, POOL), settings, np.random.default_rng(0))


class TestSearcher:
    def test_it_keeps_the_contract(self, make, space):
        objective = searchers.Separable.of(space, noise=0.1)
        searchers.check(searchers.Trace.of(make, space, objective))
        searchers.check_repeats_its_ask(make)
        searchers.check_rejects_other_answers(make, objective)

    def test_it_climbs(self, make, space):
        objective, searcher = searchers.Separable.of(space), make()
        first = searchers.run(searcher, objective)[0][1][0]
        assert searcher.incumbent().value < first.mean


@pytest.mark.parametrize("check", criteria.CHECKS)
def test_criterion(check):
    check(CRITERIA["ria"])


@pytest.mark.parametrize("shape", structured.SHAPES)
@pytest.mark.parametrize("check", structured.STRUCTURED_CHECKS)
def test_structured_criterion(check, shape):
    check(STRUCTURED["output_norm"], structured.SHAPES[shape])


@pytest.mark.parametrize("name", ["modernbert-decoder"])
class TestFamily(FamilyContract):
    pass


@pytest.mark.parametrize("name", ["modernbert-decoder"])
class TestNarrowing(NarrowingContract):
    pass


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


@pytest.fixture(scope="module", params=["llama", "modernbert-decoder"])
def loaded(request) -> LoadedModel:
    return tiny_loaded(request.param, layers=4)


@pytest.mark.parametrize("format", ["per_block"])
class TestFormat(FormatContract):
    pass

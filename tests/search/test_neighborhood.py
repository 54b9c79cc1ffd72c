"""Single changes of a genome, several in a row, against one row for each."""

import numpy as np
import pytest

from evocompress.core.config import SpaceConfig
from evocompress.search.allocation.knapsack import padded_tables
from evocompress.search.operators.neighborhood import Neighbourhood
from evocompress.space.build import build_space
from evocompress.testing.decoders import Decoder

DENSE = Decoder(layers=4)
MIXTURE = Decoder(layers=3, experts=4, active=2)
WIDTH = {"channels": [0.25, 0.5, 0.75], "multiple_of": 8, "protect": []}
SPARSE = {"target": 0.5, "levels": 1, "step": 16}
NOTHING_PROTECTED = {"protect": []}
SPACES = {
    "everything": (
        DENSE,
        {
            "sparsity": SPARSE,
            "width": WIDTH,
            "drop": NOTHING_PROTECTED,
            "budget": {"body_params": 0.4, "nonzeros": 0.3},
        },
    ),
    "blocks": (
        DENSE,
        {
            "width": WIDTH,
            "drop": {"units": ["block"], "protect": []},
            "budget": {"body_params": 0.4},
        },
    ),
    "merged": (DENSE, {"drop": {"units": ["block"], "merge": True}, "budget": {"params": 0.8}}),
    "one width": (DENSE, {"width": WIDTH | {"uniform": True}, "budget": {"body_params": 0.4}}),
    "experts": (MIXTURE, {"drop": {"units": ["expert"]}, "budget": {"body_params": 0.6}}),
    "blocks of experts": (
        MIXTURE,
        {"drop": {"units": ["block", "expert"], "protect": []}, "budget": {"params": 0.6}},
    ),
    "everything of a mixture": (
        MIXTURE,
        {
            "sparsity": SPARSE | {"match": ["*experts*"]},
            "width": WIDTH | {"units": ["mlp"]},
            "drop": {"units": ["attention", "mlp", "expert"], "protect": []},
            "budget": {"active_params": 0.8, "nonzeros": 0.4},
        },
    ),
}


@pytest.fixture(params=SPACES, scope="module")
def space(request):
    decoder, config = SPACES[request.param]
    return build_space(decoder.units(), decoder.architecture(), SpaceConfig(**config))


def harms_of(space, rng):
    return padded_tables([rng.uniform(-1, 1, len(levels)) for levels in space.levels], np.inf)


def test_they_are_what_a_row_for_each_of_them_is(space):
    rng = np.random.default_rng(0)
    harms = harms_of(space, rng)
    near = Neighbourhood(space, harms)
    genes, levels = space.encoding.options
    seen = set()
    for _ in range(40):
        genome = rng.integers(0, space.encoding.sizes)
        rows = np.tile(genome, (len(genes), 1))
        rows[np.arange(len(genes)), genes] = levels
        rows = space.deactivate(rows)
        each = np.where(space.encoding.inactive(rows), 0.0, harms[np.arange(len(genome)), rows])
        found = near.around(genome, genes, levels)
        np.testing.assert_allclose(found.harms, each.sum(axis=1), atol=1e-12)
        np.testing.assert_allclose(found.used, space.budget_usage(rows), atol=1e-12)
        admissible = space.encoding.admissible(rows)
        assert (found.admissible == admissible).all()
        assert (found.feasible == space.feasible(rows)).all()
        seen |= set(admissible.tolist())
    assert True in seen


def test_some_changes_of_some_genes(space):
    rng = np.random.default_rng(1)
    near = Neighbourhood(space, harms_of(space, rng))
    genes, levels = space.encoding.options
    every = near.around(space.encoding.default, genes, levels)
    some = rng.permutation(len(genes))[: len(genes) // 2]
    found = near.around(space.encoding.default, genes[some], levels[some])
    np.testing.assert_allclose(found.harms, every.harms[some], atol=1e-12)
    np.testing.assert_allclose(found.used, every.used[some], atol=1e-12)


def test_a_forbidden_level_has_no_finite_sum(space):
    harms = harms_of(space, np.random.default_rng(2))
    gene = len(space.units) - 1
    harms[gene, 1] = np.inf
    near = Neighbourhood(space, harms)
    genes, levels = np.array([gene, gene]), np.array([1, 0])
    assert np.isfinite(
        near.around(np.zeros_like(space.encoding.default), genes, levels).harms
    ).tolist() == [
        False,
        True,
    ]


def test_a_forbidden_level_of_the_base_is_left_by_its_own_changes_alone(space):
    harms = harms_of(space, np.random.default_rng(4))
    genes, levels = space.encoding.options
    base = np.zeros_like(space.encoding.default)
    forbidden = int(np.flatnonzero(space.encoding.sizes > 1)[0])
    harms[forbidden, 0] = np.inf
    with np.errstate(invalid="raise"):
        found = Neighbourhood(space, harms).around(base, genes, levels).harms
    leaves = (genes == forbidden) & (levels > 0)
    assert np.isfinite(found[leaves]).all()
    assert not np.isnan(found).any()
    rows = np.tile(base, (len(genes), 1))
    rows[np.arange(len(genes)), genes] = levels
    gone = space.encoding.inactive(rows)[:, forbidden]
    assert np.isinf(found[~leaves & ~gone]).all()


def test_blocks_share_rows():
    decoder, config = SPACES["experts"]
    space = build_space(decoder.units(), decoder.architecture(), SpaceConfig(**config))
    rows_of_calls = []
    deactivate = space.encoding.deactivate

    class Counting:
        def __getattr__(self, name):
            return getattr(space, name)

        def deactivate(self, rows):
            rows_of_calls.append(len(rows))
            return deactivate(rows)

    near = Neighbourhood(Counting(), harms_of(space, np.random.default_rng(3)))
    near.around(space.encoding.default, *space.encoding.options)
    assert rows_of_calls == [2 * MIXTURE.experts]

"""How tokens are divided between estimates, races and the last comparison."""

import numpy as np

from evocompress.core.requests import Estimate, Evaluate, Pool
from evocompress.core.types import Candidate
from evocompress.search.auto.auto import RADII
from evocompress.search.fidelity.token_budget import OFFSPRING, TokenBudget, split_pool
from evocompress.search.ledger import TokenLedger

POOL = Pool((64,) * 64)


def budget_of(pool, limit):
    return TokenBudget(pool, TokenLedger(pool, limit))


class TestTokenBudget:
    def test_parts_do_not_overlap(self):
        estimated, compared = split_pool(POOL, np.random.default_rng(0))
        assert not set(estimated) & set(compared)
        assert len(estimated) + len(compared) == len(POOL.tokens)
        assert split_pool(Pool((64,)), np.random.default_rng(0)) == ((0,), (0,))

    def test_a_start_leaves_enough_for_a_race(self):
        for limit in (60_000, 110_000, 660_000):
            budget = budget_of(POOL, limit)
            micro_batches = tuple(range(budget.start(range(64), 3)))
            budget.ledger.charge([Estimate(Candidate(), "curvature", micro_batches, 3)])
            assert budget.left >= 0.5 * limit
            fidelity, rivals = budget.race(range(64))
            assert len(fidelity.rungs) == 3
            assert rivals == OFFSPRING or limit < 110_000
            assert rivals >= len(RADII)

    def test_rungs_are_as_long_as_they_must_be(self):
        budget = budget_of(Pool((64,) * 2048), 409_600)
        first = len(budget.fidelity(range(2048)).rungs[0].micro_batches)
        budget.adapt(1.0, 1.0)
        assert len(budget.fidelity(range(2048)).rungs[0].micro_batches) == 2 * first
        budget.adapt(1.0, 0.5)
        assert len(budget.fidelity(range(2048)).rungs[0].micro_batches) == 2 * first
        for _ in range(20):
            budget.adapt(1.0, 0.1)
        assert len(budget.fidelity(range(2048)).rungs[0].micro_batches) == 1

    def test_removals_take_as_few_at_a_time_as_the_tokens_allow(self):
        takes = [budget_of(POOL, limit).removals(60, 14) for limit in (30_000, 60_000, 120_000)]
        assert takes[0] == (0, 0)
        assert takes[1][1] > takes[2][1] >= 1
        for (tokens, take), limit in zip(takes[1:], (60_000, 120_000), strict=True):
            assert 64 <= tokens <= 1024
            assert tokens * (1 + 90 + (14 / take - 1) * 9) <= 0.15 * limit

    def test_the_last_races_are_shorter(self):
        pool, limit = Pool((64,) * 640), 110_000
        lengths, budget = [], budget_of(pool, limit)
        while (found := budget.race(range(640)))[1]:
            lengths.append(len(found[0].rungs))
            budget.ledger.charge([Evaluate(Candidate(), (0,) * 64)])
        assert lengths == sorted(lengths, reverse=True)
        assert set(lengths) == {1, 2, 3}

    def test_the_end_has_its_share_and_what_is_left(self):
        budget = budget_of(POOL, 100_000)
        kept = 100_000 - budget.left
        assert kept > 0
        budget.ledger.charge([Evaluate(Candidate(), (0,) * (budget.left // 64))])
        final = budget.final(range(64), 3)
        assert kept - 3 * 64 < 3 * 64 * len(final) <= kept + 64

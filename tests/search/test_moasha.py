import numpy as np
import pytest

from evocompress.core.config import SpaceConfig
from evocompress.core.errors import ConfigError
from evocompress.core.pareto import layers
from evocompress.core.requests import Pool, Result
from evocompress.search.base import Problem
from evocompress.search.fidelity.moasha import MOASHA, epsilon_net, halving, priority
from evocompress.space.build import build_space
from evocompress.testing import searchers as contract
from evocompress.testing.decoders import Decoder

DECODER = Decoder(layers=6)


def space_of(**config):
    given = {"width": {"multiple_of": 4}, "drop": {}, **config}
    return build_space(DECODER.units(), DECODER.architecture(), SpaceConfig(**given))


@pytest.fixture(scope="module")
def bounded():
    return space_of(budget={"body_params": 0.6})


@pytest.fixture(scope="module")
def free():
    return space_of()


def searcher(space, tokens=None, seed=0, **settings):
    limit = {} if tokens else {"configurations": 81}
    given = MOASHA.Settings(**{"grace_tokens": 64, "max_tokens": 576, **limit, **settings})
    return MOASHA(Problem(space, contract.POOL, tokens), given, np.random.default_rng(seed))


def by_size(steps):
    """{micro-batches: candidates in the order asked}."""
    found = {}
    for requests, _ in steps:
        for request in requests:
            found.setdefault(len(request.micro_batches), []).append(request.candidate)
    return found


def sizes(pool=contract.POOL, **told):
    return [rung.tokens for rung in halving(pool, np.random.default_rng(0), **told).rungs]


def test_rungs_have_three_times_the_tokens_and_are_nested(bounded):
    steps = contract.run(searcher(bounded), contract.Separable.of(bounded))
    few, more, many = sorted({r.micro_batches for rs, _ in steps for r in rs}, key=len)
    assert (len(few), len(more), len(many)) == (1, 3, 9)
    assert set(few) < set(more) < set(many)


def test_survivors_are_the_best_third_of_what_was_known(bounded):
    objective = contract.Separable.of(bounded, noise=0.3)
    known = {1: {}, 3: {}, 9: {}}
    below = {3: 1, 9: 3}
    for requests, answers in contract.run(searcher(bounded, batch=9), objective):
        for request in requests:
            size = len(request.micro_batches)
            if size in below:
                values = known[below[size]]
                best = sorted(values, key=values.get)[: len(values) // 3]
                assert request.candidate in best
        for answer in answers:
            known[len(answer.request.micro_batches)][answer.request.candidate] = answer.mean
    assert len(known[1]) == 81 and 27 <= len(known[3]) < 50 and 9 <= len(known[9]) < 25
    values = list(known[1].values())
    best = sorted(known[1], key=known[1].get)[: len(values) // 3]
    assert set(best) <= set(known[3]), "in the end the whole best third has gone on"


def test_one_batch_of_all_is_plain_successive_halving(bounded):
    objective = contract.Separable.of(bounded, noise=0.3)
    steps = contract.run(searcher(bounded, batch=81), objective)
    assert [len(requests) for requests, _ in steps] == [81, 27, 9]
    for (_, before), (requests, _) in zip(steps, steps[1:], strict=False):
        best = sorted(before, key=lambda answer: answer.mean)[: len(requests)]
        assert [r.candidate for r in requests] == [a.request.candidate for a in best]


def test_the_incumbent_is_the_best_of_the_highest_rung(bounded):
    objective = contract.Separable.of(bounded, noise=0.3)
    search = searcher(bounded)
    steps = contract.run(search, objective)
    top = [a for _, answers in steps for a in answers if len(a.request.micro_batches) == 9]
    best = min(top, key=lambda answer: answer.mean)
    assert search.incumbent().candidate == best.request.candidate
    assert search.incumbent().value == best.mean
    assert search.objectives == ()


def test_with_one_objective_the_budget_is_used_up(bounded):
    found = by_size(contract.run(searcher(bounded), contract.Separable.of(bounded)))
    genomes = np.stack([bounded.genome(candidate) for candidate in found[1]])
    assert bounded.feasible(genomes).all() and bounded.budget_usage(genomes).min() > 0.9
    assert len(set(found[1])) == 81


def test_a_front_comes_through_over_all_costs(free):
    objective = contract.Separable.of(free)
    search = searcher(free, objectives=("params",), configurations=243)
    found = by_size(contract.run(search, objective))
    dense = free.cost_model.dense()["params"]

    def points(candidates):
        costs = free.cost_model.of(candidates)["params"] / dense
        return np.stack([[objective.value(c) for c in candidates], costs], axis=1)

    drawn, last = points(found[1]), points(found[9])
    assert search.objectives == ("params",)
    assert np.ptp(last[:, 1]) > 0.6 * np.ptp(drawn[:, 1])
    everyone = layers(np.concatenate([drawn, last]))
    assert everyone[len(drawn) :].mean() < 0.3 * everyone.mean()


def test_a_cost_is_drawn_for_each_objective(free):
    search = searcher(free, objectives=("params", "kv_bytes"))
    found = by_size(contract.run(search, contract.Separable.of(free)))
    dense, costs = free.cost_model.dense(), free.cost_model.of(found[1])
    for name in ("params", "kv_bytes"):
        assert np.ptp(costs[name] / dense[name]) > 0.5


def test_a_range_is_kept(free):
    search = searcher(free, range={"params": (0.7, 0.9)})
    found = by_size(contract.run(search, contract.Separable.of(free)))
    shares = free.cost_model.of(found[1])["params"] / free.cost_model.dense()["params"]
    assert search.objectives == ("params",)
    assert shares.max() <= 0.9 * (1 + 1e-9) and shares.min() > 0.6


def test_what_failed_does_not_go_on(bounded):
    objective = contract.Separable.of(bounded)

    def answer(request):
        if int(request.candidate.id, 16) % 10:
            return Result(request, (), failed="made to fail")
        return objective(request)

    found = by_size(contract.run(searcher(bounded), answer))
    assert len(found[1]) == 81
    assert {int(candidate.id, 16) % 10 for candidate in found[3]} == {0}


def test_a_failed_top_leaves_the_incumbent_below(bounded):
    objective = contract.Separable.of(bounded)

    def answer(request):
        if len(request.micro_batches) == 9:
            return Result(request, (), failed="made to fail")
        return objective(request)

    search = searcher(bounded)
    found = by_size(contract.run(search, answer))
    assert search.incumbent().candidate in found[3]


@pytest.mark.parametrize("tokens", [5_000, 20_011])
def test_tokens_are_used_up_but_not_exceeded(bounded, tokens):
    steps = contract.run(searcher(bounded, tokens=tokens), contract.Separable.of(bounded))
    spent = sum(contract.POOL.requested(r) for requests, _ in steps for r in requests)
    assert tokens - 64 < spent <= tokens
    drawn, _, last = by_size(steps).values()
    assert tokens / 64 / 4 < len(drawn) < tokens / 64 / 2, "each rung gets about a third"
    assert len(last) >= len(drawn) // 18


def test_a_small_space_is_drawn_to_its_end():
    small = space_of(width=None, drop={"units": ["block"]}, budget={"body_params": 0.7})
    search = searcher(small, configurations=500)
    found = by_size(contract.run(search, contract.Separable.of(small)))
    assert len(found[1]) == len(set(found[1])) < 500
    assert search.incumbent().candidate in found[max(found)]


def test_the_seed_alone_decides(free):
    def asks(seed):
        search = searcher(free, seed=seed, objectives=("params",))
        return [requests for requests, _ in contract.run(search, contract.Separable.of(free))]

    assert asks(0) == asks(0) != asks(1)


def test_an_epsilon_net_always_takes_the_farthest():
    points = np.random.default_rng(0).random((40, 3)) * [1.0, 1e6, 1e-3]
    order = epsilon_net(points)
    assert sorted(order) == list(range(40)) and order[0] == points[:, 0].argmin()
    scaled = points / np.ptp(points, axis=0)
    for place in range(1, 40):
        away = np.linalg.norm(scaled[:, None] - scaled[order[:place]], axis=2).min(axis=1)
        assert away[order[place]] == pytest.approx(away.max())


def test_an_epsilon_net_of_equal_points_takes_all():
    assert epsilon_net(np.ones((4, 2))) == [0, 1, 2, 3]


def test_priority_is_layer_after_layer_without_failures():
    rng = np.random.default_rng(0)
    points = rng.random((60, 2))
    points[rng.random(60) < 0.2] = np.inf
    order = priority(points, 60)
    assert sorted(order) == np.flatnonzero(np.isfinite(points[:, 0])).tolist()
    assert (np.diff(layers(points)[order]) >= 0).all()
    assert priority(points, 10) == order[:10]


def test_priority_of_a_value_alone_is_its_order():
    points = np.array([[3.0], [1.0], [np.inf], [2.0]])
    assert priority(points, 4) == [1, 3, 0]
    assert priority(points, 2) == [1, 3]


def test_as_many_rungs_as_pool_and_limits_allow():
    assert sizes(eta=3, grace=64) == [64, 192, 576, 1728]
    assert sizes(eta=3, grace=64, configurations=26) == [64, 192, 576]
    assert sizes(eta=3, grace=64, tokens=27 * 4 * 64 - 1) == [64, 192, 576]
    assert sizes(eta=2, grace=128, most=600 * 64 // 100 * 2) == [128, 256, 512, 768]
    assert sizes(Pool((512,) * 300), eta=3)[:2] == [2048, 6144]


@pytest.mark.parametrize(
    ("tokens", "settings", "message"),
    [
        (None, {"configurations": None}, "search.tokens or search.configurations"),
        (None, {"configurations": 8}, "search.configurations: of 8 none .* 576 .* at least 9"),
        (1000, {}, "search.tokens: 1000 is less than the 1728 that bring one of 9"),
        (None, {"grace_tokens": 640}, "search.max_tokens: 576 is less than the 640"),
        (None, {"grace_tokens": 100}, "search.grace_tokens: 100 is no multiple"),
        (None, {"max_tokens": 6400}, "search.max_tokens asks for 6400 tokens"),
        (None, {"objectives": ("parms",)}, "search.objectives: unknown cost 'parms'"),
    ],
)
def test_a_wrong_setting_is_one_clear_line(bounded, tokens, settings, message):
    with pytest.raises(ConfigError, match=message) as caught:
        searcher(bounded, tokens=tokens, **settings)
    assert "\n" not in str(caught.value)


def test_neither_budget_nor_objectives_is_refused(free):
    with pytest.raises(ConfigError, match=r"space.budget is missing"):
        searcher(free)

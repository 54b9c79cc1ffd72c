"""The searchers that remove units, each against the plainest form of its algorithm."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from evocompress.core.config import SpaceConfig
from evocompress.core.errors import ConfigError, RunError
from evocompress.core.requests import Estimate, MicroBatchValue, Result
from evocompress.core.types import DROP, Candidate
from evocompress.pipeline.journal import Journal
from evocompress.pipeline.loop import replay, search
from evocompress.search import SEARCHERS
from evocompress.search.base import Problem
from evocompress.space.build import build_space
from evocompress.testing.decoders import Decoder
from evocompress.testing.searchers import POOL, Separable, run

LAYERS = 8
DECODER = Decoder(layers=LAYERS)
BLOCKS = [unit.name for unit in DECODER.units() if unit.kind == "block"]


def space_of(budget=0.6, **drop):
    config = SpaceConfig(drop=drop, budget={"body_params": budget})
    return build_space(DECODER.units(), DECODER.architecture(), config)


SUBLAYERS = space_of()
WHOLE = space_of(units=["block"], protect=[])
SHELTERED = space_of(units=["block"], protect=["*.0", "*.5"])
MERGING = space_of(units=["block"], merge=True, protect=[])


def searcher(name, space, **settings):
    cls = SEARCHERS[name]
    settings = cls.Settings(candidate_tokens=128, **settings)
    return cls(Problem(space, POOL), settings, np.random.default_rng(0))


class Interacting:
    """An objective in which what two units are worth depends on whether both are gone."""

    def __init__(self, space, seed=1):
        rng = np.random.default_rng(seed)
        self._alone = Separable.of(space, seed=seed)
        names = [unit.name for unit in space.encoding.tree if unit.kind in ("attention", "mlp")]
        self._pairs = {pair: rng.normal(scale=0.15) for pair in combinations(names, 2)}

    def value(self, candidate):
        gone = [name for name, level in candidate.levels if level == DROP]
        pairs = sum(self._pairs[pair] for pair in combinations(sorted(gone), 2))
        return self._alone.value(candidate) + pairs

    def __call__(self, request):
        if isinstance(request, Estimate):
            return self._alone(request)
        value = self.value(request.candidate)
        values = [MicroBatchValue(index, (10 * value,), (10,)) for index in request.micro_batches]
        return Result(request, tuple(values))


def without(space, genes):
    genome = space.encoding.default.copy()
    genome[list(genes)] = space.encoding.drop_index[list(genes)]
    return space.deactivate(genome[None])[0]


def value(space, oracle, genes):
    return oracle.value(space.candidate(without(space, genes)))


def enough(space, genes):
    return space.feasible(without(space, genes)[None])[0]


def greedy(space, oracle, allowed=lambda gene, gone: True):
    """Round by round the unit that is missed least, until it is enough; and each round's size."""
    gone, rounds = [], []
    while not enough(space, gone):
        left = [gene for gene in space.encoding.droppable if gene not in gone]
        tried = [gene for gene in left if allowed(gene, gone)]
        rounds.append(len(tried))
        gone.append(min(tried, key=lambda gene: value(space, oracle, [*gone, gene])))
    return space.candidate(without(space, gone)), rounds


def in_order(space, importance):
    """The first units of a ranking that are enough."""
    order = sorted(space.encoding.droppable, key=lambda gene: importance(gene))
    count = next(n for n in range(len(order) + 1) if enough(space, order[:n]))
    return space.candidate(without(space, order[:count]))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("name", "space"),
    [("blockpruner", SUBLAYERS), ("blockpruner", WHOLE), ("finercut", SUBLAYERS)],
)
def test_greedy_removal_is_the_greedy_algorithm(name, space, seed):
    oracle = Interacting(space, seed)
    search = searcher(name, space)
    steps = run(search, oracle)
    expected, rounds = greedy(space, oracle)
    assert search.incumbent().candidate == expected
    assert [len(requests) for requests, _ in steps] == [*rounds, 1]
    probes = [request.probe for requests, _ in steps for request in requests]
    assert probes == [True] * sum(rounds) + [False]
    assert len({request.micro_batches for requests, _ in steps for request in requests}) == 1


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("space", [WHOLE, SHELTERED])
def test_sleb_keeps_the_first_and_last_block_that_is_left(space, seed):
    oracle = Interacting(space, seed)

    def inner(gene, gone):
        dropped = {space.units[other].block for other in gone}
        left = [block for block in range(LAYERS) if block not in dropped]
        return space.units[gene].block not in (left[0], left[-1])

    search = searcher("sleb", space)
    run(search, oracle)
    assert search.incumbent().candidate == greedy(space, oracle, inner)[0]


def test_sleb_is_repaired_where_the_inner_blocks_are_not_enough():
    space = space_of(budget=1 / LAYERS, units=["block"], protect=[])
    search = searcher("sleb", space)
    steps = run(search, Interacting(space))
    assert len(steps) == LAYERS - 2 + 1
    assert len(search.incumbent().candidate.levels) == 2 * (LAYERS - 1)


@pytest.mark.parametrize("space", [SUBLAYERS, WHOLE, SHELTERED])
def test_shortgpt_takes_the_least_influence_once(space):
    oracle = Interacting(space)
    weights = Separable.of(space, seed=1).weights
    search = searcher("shortgpt", space)
    (estimate, _), (final, _) = run(search, oracle)
    assert [request.kind for request in estimate] == ["block_influence"]
    assert estimate[0].candidate == Candidate()
    assert [request.probe for request in final] == [False]
    expected = in_order(space, lambda gene: weights[space.units[gene].name])
    assert search.incumbent().candidate == expected


@pytest.mark.parametrize("space", [SUBLAYERS, WHOLE])
def test_shortened_llama_ranks_what_is_measured_alone(space):
    oracle = Interacting(space)
    search = searcher("shortened_llama", space)
    (tries, _), _ = run(search, oracle)
    assert len(tries) == len(space.encoding.droppable)
    assert all(request.probe for request in tries)
    expected = in_order(space, lambda gene: value(space, oracle, [gene]))
    assert search.incumbent().candidate == expected


@pytest.mark.parametrize(("shield", "kept"), [(None, {0, 1, 2, 3, 6, 7}), ((1, 3), {0, 5, 6, 7})])
def test_the_shield_keeps_first_and_last_blocks(shield, kept):
    space = space_of(budget=0.8, units=["block"], protect=[])
    search = searcher("shortened_llama", space, metric="taylor", shield=shield)
    (estimate, _), _ = run(search, Interacting(space))
    assert [request.kind for request in estimate] == ["taylor"]
    weights = Separable.of(space, seed=1).weights
    expected = in_order(
        space,
        lambda gene: weights[space.units[gene].name] + 9 * (space.units[gene].block in kept),
    )
    assert search.incumbent().candidate == expected


@pytest.mark.parametrize(
    ("positions", "kind"), [("last", "last_angular_distance"), ("all", "angular_distance")]
)
@pytest.mark.parametrize("space", [WHOLE, SHELTERED, MERGING])
def test_window_is_the_nearest_of_the_shortest(space, positions, kind):
    oracle = Interacting(space)
    search = searcher("window", space, positions=positions)
    (estimate, [distances]), _ = run(search, oracle)
    assert [request.kind for request in estimate] == [kind]
    homes = {space.units[gene].block: gene for gene in space.encoding.droppable}
    windows = [
        (length, distances.by_unit[BLOCKS[first]][length - 1], range(first, first + length))
        for length in range(1, LAYERS + 1)
        for first in range(LAYERS + 1 - length)
    ]
    found = [
        (length, distance, genes)
        for length, distance, blocks in windows
        if homes.keys() >= set(blocks)
        and enough(space, genes := [homes[block] for block in blocks])
    ]
    if found:
        expected = space.candidate(without(space, min(found)[2]))
        assert search.incumbent().candidate == expected
    else:
        assert space is SHELTERED
    assert space.feasible(space.genome(search.incumbent().candidate)[None])[0]


def walk(space, oracle, blocks, interval, farthest):
    """LaCo on plain lists, with walks until the budget is met."""
    alive = list(range(LAYERS))
    gone = []

    def tried(place):
        return [*gone, *alive[place + 1 : place + blocks]]

    while not enough(space, gone):
        place, moved = len(alive) - blocks, False
        refused = {}
        while place >= 0 and not enough(space, gone):
            if value(space, oracle, tried(place)) < farthest:
                gone, moved = tried(place), True
                alive = [block for block in alive if block not in gone]
                place = min(place - interval, len(alive) - blocks)
            else:
                refused[place] = value(space, oracle, tried(place))
                place -= 1
        if not moved:
            gone = tried(min(refused, key=refused.get))
            alive = [block for block in alive if block not in gone]
    return space.candidate(without(space, gone))


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.5, 1.0])
@pytest.mark.parametrize(("blocks", "interval"), [(2, 1), (3, 1), (2, 3), (4, 2)])
def test_laco_walks_down(blocks, interval, threshold):
    oracle = Interacting(MERGING, seed=4)
    settings = {"blocks": blocks, "interval": interval, "threshold": threshold}
    search = searcher("laco", MERGING, **settings)
    run(search, oracle)
    expected = walk(MERGING, oracle, blocks, interval, 1 - threshold)
    assert search.incumbent().candidate == expected
    merges = [level.merge for _, level in expected.levels if level.merge]
    assert sum(merges) == sum(level == DROP for _, level in expected.levels) / 2


def test_laco_leaves_protected_blocks_alone():
    space = space_of(budget=0.75, units=["block"], merge=True, protect=["*.0", "*.5"])
    search = searcher("laco", space, blocks=3)
    run(search, Interacting(space))
    gone = {
        name.rsplit(".", 1)[0]
        for name, level in search.incumbent().candidate.levels
        if level == DROP
    }
    assert not gone & {BLOCKS[0], BLOCKS[5]}


def failing_least(name):
    """A search whose first round would take what fails, what that is, and the next best."""
    oracle = Separable.of(SUBLAYERS)
    search = searcher(name, SUBLAYERS)
    tries = sorted(search.ask(), key=lambda request: oracle.value(request.candidate))
    least, second = (request.candidate for request in tries[:2])
    return search, replace(oracle, failing=frozenset({least.id})), least, second


@pytest.mark.parametrize("name", ["blockpruner", "finercut"])
def test_a_round_does_not_take_what_fails(name):
    search, oracle, _, second = failing_least(name)
    search.tell([oracle(request) for request in search.ask()])
    assert all(set(second.levels) <= set(request.candidate.levels) for request in search.ask())


def test_what_fails_alone_ranks_last():
    search, oracle, least, second = failing_least("shortened_llama")
    run(search, oracle)
    removed = search.incumbent().candidate.by_name
    assert second.by_name.keys() <= removed.keys()
    assert not least.by_name.keys() & removed.keys()


def test_what_saves_nothing_that_is_exceeded_is_not_tried():
    config = SpaceConfig(drop={}, budget={"kv_bytes": 0.7})
    space = build_space(DECODER.units(), DECODER.architecture(), config)
    steps = run(searcher("blockpruner", space), Interacting(space))
    dropped = {name for requests, _ in steps for r in requests for name, _ in r.candidate.levels}
    assert all(name.endswith(".attention") for name in dropped)


REFUSED = [
    ("sleb", SUBLAYERS, r"set space.drop.units to \[block\]"),
    ("window", SUBLAYERS, r"set space.drop.units to \[block\]"),
    ("finercut", WHOLE, r"set space.drop.units to \[attention, mlp\]"),
    ("laco", WHOLE, "space.drop.merge"),
    ("multipruner", WHOLE, "space.width"),
    ("flap", WHOLE, "space.width"),
]


@pytest.mark.parametrize(("name", "space", "reason"), REFUSED)
def test_a_space_that_does_not_suit_is_refused(name, space, reason):
    with pytest.raises(ConfigError, match=reason):
        searcher(name, space)


@pytest.mark.parametrize(
    "name", ["shortgpt", "window", "shortened_llama", "sleb", "blockpruner", "finercut", "laco"]
)
def test_nothing_to_remove_or_no_budget_is_refused(name):
    units, architecture = DECODER.units(), DECODER.architecture()
    config = SpaceConfig(sparsity={"target": 0.5}, budget={"matrix_nonzeros": 0.5})
    with pytest.raises(ConfigError, match=r"needs space\.drop"):
        searcher(name, build_space(units, architecture, config))
    with pytest.raises(ConfigError, match="budget"):
        searcher(name, build_space(units, architecture, SpaceConfig(drop={})))


class Answering:
    """An executor that asks the objective."""

    def __init__(self, oracle):
        self._oracle = oracle

    def map(self, requests):
        return map(self._oracle, requests)

    def close(self):
        pass


GREEDY = [
    ("blockpruner", {}),
    ("finercut", {}),
    ("sleb", {"units": ["block"]}),
    ("laco", {"units": ["block"], "merge": True}),
]


@pytest.mark.parametrize(("name", "drop"), GREEDY)
def test_a_tight_journal_answers_every_looser_budget(name, drop, tmp_path):
    tightest = space_of(0.4, **drop)
    oracle = Interacting(tightest)
    with Journal(tmp_path / "j", {}) as journal:
        search(searcher(name, tightest), Answering(oracle), journal, POOL)
        for budget in (0.9, 0.75, 0.6, 0.4):
            space = space_of(budget, **drop)
            found = replay(searcher(name, space), journal)
            alone = searcher(name, space)
            run(alone, oracle)
            assert found == alone.incumbent()
        with pytest.raises(RunError, match="does not answer"):
            replay(searcher(name, space_of(0.2, **drop)), journal)

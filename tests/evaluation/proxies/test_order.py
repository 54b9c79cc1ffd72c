"""No block is run that another candidate has run already."""

import random

import pytest

from evocompress.compression.live_model import LiveModel
from evocompress.core.canonical import canonical
from evocompress.core.config import ProxyConfig
from evocompress.core.requests import Evaluate
from evocompress.core.types import DROP, Candidate, Level
from evocompress.evaluation.proxies import make_proxy
from evocompress.evaluation.proxies.order import depth_first
from evocompress.evaluation.proxies.prefix import levels_by_block
from evocompress.testing.plain_library import PlainLibrary
from evocompress.testing.proxies import dropped, micro_batches
from evocompress.testing.tiny import tiny_loaded

LAYERS = 5


@pytest.fixture(scope="module")
def loaded():
    return tiny_loaded("llama", layers=LAYERS)


def mutations(live, count, seed):
    """Candidates with zeros and drops, each a small change of a common parent."""
    rng = random.Random(seed)
    matrices = [unit for unit in live.units.values() if unit.kind == "matrix"]
    parts = [name for name, unit in live.units.items() if unit.kind in ("attention", "mlp")]
    parent = {unit.name: Level(zeros=unit.numel // 2) for unit in matrices}
    found = []
    for _ in range(count):
        child = dict(parent)
        for unit in rng.sample(matrices, 2):
            child[unit.name] = Level(zeros=unit.numel // rng.choice((3, 4)))
        if rng.random() < 0.3:
            child[rng.choice(parts)] = DROP
        found.append(canonical(child, list(live.units.values())))
    return found


def nodes(candidates, units):
    """How many different beginnings of candidates there are, block by block."""
    paths = [levels_by_block(candidate, units) for candidate in candidates]
    return len({tuple(path[: depth + 1]) for path in paths for depth in range(len(path))})


@pytest.mark.parametrize("seed", range(3))
def test_every_node_of_the_trie_is_run_once(loaded, seed):
    ran = []
    for block in loaded.family.blocks(loaded.model):
        block.register_forward_hook(lambda *_: ran.append(None))
    with LiveModel(loaded, PlainLibrary(loaded)) as live:
        candidates = mutations(live, 16, seed)
        proxy = make_proxy(live, micro_batches(loaded), ProxyConfig())
        requests = [Evaluate(candidate, (0, 1)) for candidate in candidates]
        proxy.evaluate([Evaluate(Candidate(), (0, 1))])
        ran.clear()
        results = list(proxy.stream(requests))
        least = nodes(candidates, live.units)
    assert len(ran) == 2 * least < 2 * LAYERS * len(candidates)
    assert {result.request for result in results} == set(requests)


def test_an_interrupted_walk_goes_on_in_the_same_order(loaded):
    live = LiveModel(loaded)
    candidates = mutations(live, 12, 0)
    order = [candidates[index] for index in depth_first(candidates, live.units)]
    left = [candidate for candidate in candidates if candidate not in order[:5]]
    assert [left[index] for index in depth_first(left, live.units)] == order[5:]


def test_equal_candidates_stay_in_order(loaded):
    same = [Candidate(), Candidate(), dropped(loaded, "0.mlp")]
    assert depth_first(same, LiveModel(loaded).units) == [0, 1, 2]


def test_nodes_are_counted_by_hand(loaded):
    units = LiveModel(loaded).units
    first, last = dropped(loaded, "0.mlp"), dropped(loaded, f"{LAYERS - 1}.mlp")
    assert nodes([Candidate()], units) == LAYERS
    assert nodes([Candidate(), first], units) == 2 * LAYERS
    assert nodes([Candidate(), last], units) == LAYERS + 1

"""The local executor, alone and with a model under a whole search."""

import numpy as np
import pytest

from evocompress.compression.live_model import LiveModel
from evocompress.core.config import ProxyConfig, SpaceConfig
from evocompress.core.requests import Estimate, Estimation, Evaluate, Pool, Result
from evocompress.core.types import Candidate
from evocompress.evaluation.estimates import ESTIMATES
from evocompress.evaluation.estimates.answer import LiveEstimates
from evocompress.evaluation.estimates.base import Subject
from evocompress.evaluation.executor import LocalExecutor
from evocompress.evaluation.proxies import make_proxy
from evocompress.pipeline.journal import Journal
from evocompress.pipeline.loop import search
from evocompress.search import SEARCHERS
from evocompress.search.base import Problem
from evocompress.space.build import build_space
from evocompress.testing.proxies import micro_batches
from evocompress.testing.tiny import tiny_loaded

BLOCKS = {"units": ["block"], "protect": []}
CASES = {
    "shortgpt": ({}, {}),
    "window": (BLOCKS, {}),
    "shortened_llama": (BLOCKS, {"metric": "taylor", "shield": (1, 0)}),
    "sleb": (BLOCKS, {}),
}


@pytest.fixture(scope="module")
def loaded():
    return tiny_loaded("llama", layers=4)


class Numbered:
    """A proxy and a source of estimates that count what they are asked."""

    def __init__(self):
        self.asked = []

    def stream(self, requests):
        for request in reversed(requests):
            self.asked.append(request)
            yield Result(request, ())

    def estimate(self, request):
        self.asked.append(request)
        return Estimation(request, (), ())


def test_answers_come_one_by_one_estimates_first():
    source = Numbered()
    requests = [
        Evaluate(Candidate(), (0,)),
        Estimate(Candidate(), "taylor", (1,)),
        Evaluate(Candidate(), (2,)),
    ]
    answers = LocalExecutor(source, source).map(requests)
    order = [requests[1], requests[2], requests[0]]
    for count, request in enumerate(order, start=1):
        assert next(answers).request == request
        assert source.asked == order[:count]


def run(loaded, path, name, die_after=None):
    """A whole search on the model; the incumbent and what was computed."""
    drop, settings = CASES[name]
    family, batches = loaded.family, micro_batches(loaded)
    config = SpaceConfig(drop=drop, budget={"body_params": 0.7})
    space = build_space(family.units(loaded.model), family.architecture(loaded.model), config)
    pool = Pool(tuple(ids.numel() for ids in batches))
    cls = SEARCHERS[name]
    searcher = cls(Problem(space, pool), cls.Settings(**settings), np.random.default_rng(0))
    path.mkdir(exist_ok=True)
    with LiveModel(loaded) as live, Journal(path / "journal", {}) as journal:
        executor = Mortal(
            make_proxy(live, batches, ProxyConfig(kind="perplexity")),
            LiveEstimates(live, batches),
            die_after,
        )
        best = search(searcher, executor, journal, pool).best
    return best, executor.done, space


class Mortal(LocalExecutor):
    """Dies after a number of answers."""

    def __init__(self, proxy, estimates, die_after):
        super().__init__(proxy, estimates)
        self._die_after = die_after
        self.done = 0

    def map(self, requests):
        for answer in super().map(requests):
            if self.done == self._die_after:
                raise KeyboardInterrupt
            self.done += 1
            yield answer


@pytest.mark.parametrize("name", CASES)
def test_a_search_with_a_model_goes_on_where_it_was_killed(loaded, tmp_path, name):
    best, count, space = run(loaded, tmp_path / "whole", name)
    assert space.feasible(space.genome(best.candidate)[None])[0]
    expected = (tmp_path / "whole" / "journal").read_bytes()
    for die_after in range(count):
        with pytest.raises(KeyboardInterrupt):
            run(loaded, tmp_path / f"cut{die_after}", name, die_after)
        again, rest, _ = run(loaded, tmp_path / f"cut{die_after}", name)
        assert (again, rest) == (best, count - die_after)
        assert (tmp_path / f"cut{die_after}" / "journal").read_bytes() == expected


def test_shortgpt_removes_what_turns_the_stream_least(loaded, tmp_path):
    best, _, space = run(loaded, tmp_path, "shortgpt")
    with LiveModel(loaded) as live:
        rows = ESTIMATES["block_influence"](Subject(live, micro_batches(loaded), Candidate()))
    removed = {name for name, _ in best.candidate.levels}
    kept = {unit.name for unit in space.units} - removed
    assert max(rows[name] for name in removed) < min(rows[name] for name in kept)

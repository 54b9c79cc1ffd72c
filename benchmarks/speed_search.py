"""The part of `speed.py` that is about what a search does beside evaluating."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence

import numpy as np
from common import Figure
from speed_setting import Setting

from evocompress.compression.live_model import LiveModel
from evocompress.core.config import ProxyConfig
from evocompress.core.requests import Answer, Pool, Request
from evocompress.evaluation.estimates.answer import LiveEstimates
from evocompress.evaluation.executor import LocalExecutor
from evocompress.evaluation.proxies import make_proxy
from evocompress.pipeline import loop
from evocompress.pipeline.journal import Journal
from evocompress.search import SEARCHERS
from evocompress.search.base import Problem

MANY = 10_000
MICRO_BATCHES = 4


def searches(setting: Setting) -> dict[str, Figure]:
    """All figures of this part."""
    return {"cost_10k_ms": costs(setting), "overhead_fraction": overhead(setting)}


def costs(setting: Setting) -> float:
    """Milliseconds for all costs of many candidates of a space of everything."""
    space = setting.space(
        sparsity={"target": 0.5}, width={"multiple_of": 32}, drop={}, budget={"params": 0.7}
    )
    rng = np.random.default_rng(0)
    genomes = rng.integers(0, space.encoding.sizes, size=(MANY, len(space.encoding.sizes)))
    seconds = []
    for _ in range(setting.repeats + 1):
        start = time.perf_counter()
        space.costs(genomes)
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds[1:])


class Timed:
    """An executor that knows how long it was at work."""

    def __init__(self, executor: LocalExecutor) -> None:
        self._executor = executor
        self.seconds = 0.0

    def map(self, requests: Sequence[Request]) -> Iterator[Answer]:
        """The answers; the clock stands still while the caller has one."""
        answers = self._executor.map(requests)
        while True:
            start = time.perf_counter()
            answer = next(answers, None)
            self.seconds += time.perf_counter() - start
            if answer is None:
                return
            yield answer

    def close(self) -> None:
        """Closes the executor."""
        self._executor.close()


def overhead(setting: Setting) -> float:
    """Of two generations of EvoPress, with its journal, what is not evaluation."""
    pool = [setting.tokens(MICRO_BATCHES)[i : i + 1] for i in range(MICRO_BATCHES)]
    sizes = Pool((setting.length,) * MICRO_BATCHES)
    factory = SEARCHERS["evopress"]
    settings = factory.Settings.model_validate(
        {
            "generations": 2,
            "offspring": setting.generation,
            "survivors": (2, 1),
            "stage_tokens": (setting.length, MICRO_BATCHES * setting.length),
        }
    )
    problem = Problem(setting.sparsity, sizes, None)
    searcher = factory(problem, settings, np.random.default_rng(0))
    path = setting.folder / "journal.jsonl"
    with LiveModel(setting.loaded, setting.library) as live, Journal(path, {}) as journal:
        proxy = make_proxy(live, pool, ProxyConfig())
        timed = Timed(LocalExecutor(proxy, LiveEstimates(live, pool)))
        start = time.perf_counter()
        loop.search(searcher, timed, journal, sizes)
        total = time.perf_counter() - start
    return 1 - timed.seconds / total

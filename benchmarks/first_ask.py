"""How long searchers think before they ask for their first candidates.

A decoder of made-up dimensions, seven matrices a block, 13 levels of sparsity each; no model and no
evaluation. `NAME_s` is the processor time of the first ask of the searcher NAME, the ids of the
candidates included, the least of `--repeats`; `genes` is what it decides about. Imports are made
before.

    python benchmarks/first_ask.py --blocks 150 --searchers random nsga2 auto

``--quick`` does it with few blocks.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from common import Figure, emit

from evocompress.core.config import SpaceConfig
from evocompress.core.requests import Evaluate, Pool
from evocompress.search import SEARCHERS
from evocompress.search.base import Problem
from evocompress.space.build import build_space
from evocompress.space.space import SearchSpace
from evocompress.testing.decoders import Decoder

POOL = Pool((1024,) * 64)
TOKENS = 100_000_000


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--blocks", type=int, default=150)
    parser.add_argument("--searchers", nargs="+", choices=SEARCHERS, default=["random", "nsga2"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="few blocks")
    arguments = parser.parse_args()
    decoder = Decoder(layers=4 if arguments.quick else arguments.blocks, hidden=512, ffn=1024)
    config = SpaceConfig.model_validate({"sparsity": {"target": 0.5}})
    space = build_space(decoder.units(), decoder.architecture(), config)
    figures: dict[str, Figure] = {"genes": len(space.units)}
    for name in arguments.searchers:
        # The first one also imports what the searcher needs.
        times = [first_ask(name, space) for _ in range(arguments.repeats + 1)]
        figures[f"{name}_s"] = min(times[1:])
    emit("first_ask", figures, arguments.json)


def first_ask(name: str, space: SearchSpace) -> float:
    """Seconds of processor time of a searcher's first ask."""
    factory = SEARCHERS[name]
    problem = Problem(space, POOL, TOKENS)
    start = time.process_time()
    requests = factory(problem, factory.Settings(), np.random.default_rng(0)).ask()
    for request in requests:
        if isinstance(request, Evaluate):
            _ = request.candidate.id
    return time.process_time() - start


if __name__ == "__main__":
    main()

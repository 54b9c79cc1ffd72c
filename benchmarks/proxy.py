"""What the KL proxy costs beside the forward pass that it cannot do without.

Three ways to run one micro-batch take turns in one process, every teacher target prepared before:

- bare: ``model(ids).logits``, all positions, which computes no divergence at all;
- proxy: `MetricProxy.evaluate` of the dense candidate, with its top-k teacher and chunked head;
- two-sided: the recipe of EvoPress's released code (2410.14649): one sequence at a time, full
  teacher logits stored, log-softmax of both sides over the whole vocabulary, ``kl_div``. Its
  README names transformers 4.43.4, whose models returned float32 logits; today's return the
  model's dtype, with which the recipe is faster and too coarse to compare candidates, so both
  are measured.

Figures: `vs_forward`, the proxy's tokens per second over those of the bare pass (aim: at least
0.85); `vs_two_sided_kl`, over those of the two-sided recipe in float32 (aim: at least 1.3), and
`vs_two_sided_kl_model_dtype`; each is the median over the turns. `peak_mib`,
`peak_mib_two_sided` and `peak_mib_two_sided_model_dtype` are how far the resident memory of a
fresh process rises after its imports while it loads the model, prepares the teacher for
`--pool` micro-batches and evaluates them all; pages that a file backs are not counted.

    python benchmarks/proxy.py --json proxy.json
    python benchmarks/proxy.py --quick
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import torch
from common import Figure, PeakMemory, emit, interleaved, median_ratio
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from evocompress.compression.live_model import LiveModel
from evocompress.core.config import ProxyConfig
from evocompress.core.requests import Evaluate
from evocompress.core.types import Candidate
from evocompress.evaluation.proxies import make_proxy, prefix
from evocompress.models.loading import LoadedModel, load
from evocompress.testing.tiny import tiny_loaded

Figures = dict[str, Figure]

TINY = "tiny"
TWO_SIDED = {"two_sided": torch.float32, "two_sided_model_dtype": torch.bfloat16}


def main() -> None:
    """Measure, print and write."""
    arguments = parse()
    if arguments.memory:
        print(peak_memory(arguments, arguments.memory))
        return
    peaks = memory(arguments)
    emit("proxy", speed(arguments) | peaks, arguments.json)


def parse() -> argparse.Namespace:
    """The command line; ``--memory`` is how the script calls itself."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--quick", action="store_true", help="a tiny random model")
    parser.add_argument("--model", default="demo:smollm2-135m")
    parser.add_argument("--micro-batch", type=int, default=2, help="sequences")
    parser.add_argument("--length", type=int, default=512, help="tokens of a sequence")
    parser.add_argument("--pool", type=int, default=4, help="micro-batches of the memory test")
    parser.add_argument("--repeats", type=int, default=7, help="turns")
    parser.add_argument("--memory", choices=["proxy", *TWO_SIDED], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.model, arguments.length = TINY, 128
    return arguments


def load_model(source: str) -> LoadedModel:
    """The model in bfloat16."""
    if source == TINY:
        return tiny_loaded(vocabulary=4096, dtype=torch.bfloat16)
    return load(source, dtype="bfloat16")


def random_pool(arguments: argparse.Namespace, loaded: LoadedModel) -> list[Tensor]:
    """Micro-batches of random tokens: what a token is does not matter to the time it takes."""
    generator = torch.Generator().manual_seed(0)
    shape = (arguments.micro_batch, arguments.length)
    vocabulary = loaded.model.config.vocab_size
    return [
        torch.randint(vocabulary, shape, generator=generator).to(loaded.model.device)
        for _ in range(arguments.pool)
    ]


def prepare_proxy(loaded: LoadedModel, pool: list[Tensor]) -> Callable[[int], object]:
    """A function that evaluates the dense candidate on the first n micro-batches."""
    proxy = make_proxy(LiveModel(loaded), pool, ProxyConfig())

    def evaluate(micro_batches: int) -> object:
        return proxy.evaluate([Evaluate(Candidate(), tuple(range(micro_batches)))])

    evaluate(len(pool))
    return evaluate


@torch.inference_mode()
def prepare_two_sided(
    model: PreTrainedModel, pool: list[Tensor], dtype: torch.dtype
) -> Callable[[int], object]:
    """The same with EvoPress's recipe and logits of a dtype."""
    sequences = [ids[None] for batch in pool for ids in batch]
    stored = [model(ids, use_cache=False).logits.to(dtype) for ids in sequences]

    @torch.inference_mode()
    def evaluate(micro_batches: int) -> object:
        used = micro_batches * len(pool[0])
        pairs = zip(sequences[:used], stored[:used], strict=True)
        return [two_sided_divergence(model, ids, target) for ids, target in pairs]

    return evaluate


def two_sided_divergence(model: PreTrainedModel, ids: Tensor, target: Tensor) -> float:
    """Token mean of the divergence of one sequence (1, S) from stored logits (1, S, V)."""
    logits = model(ids, use_cache=False).logits.to(target.dtype)[:, :-1].contiguous()
    return functional.kl_div(
        logits.flatten(0, 1).log_softmax(-1),
        target[:, :-1].flatten(0, 1).log_softmax(-1),
        reduction="batchmean",
        log_target=True,
    ).item()


def speed(arguments: argparse.Namespace) -> Figures:
    """Tokens per second of the three, on the first micro-batch."""
    # The same candidate again would run no block at all.
    prefix.LIMIT_BYTES = 0
    loaded = load_model(arguments.model)
    pool = random_pool(arguments, loaded)[:1]
    proxy = prepare_proxy(loaded, pool)
    recipes = {
        name: prepare_two_sided(loaded.model, pool, dtype) for name, dtype in TWO_SIDED.items()
    }

    @torch.inference_mode()
    def bare() -> None:
        loaded.model(pool[0], use_cache=False).logits[0, -1, 0].item()

    functions: dict[str, Callable[[], object]] = {"forward": bare, "proxy": partial(proxy, 1)}
    functions |= {name: partial(recipe, 1) for name, recipe in recipes.items()}
    seconds = interleaved(functions, arguments.repeats)
    tokens = pool[0].numel()
    figures: Figures = {
        "model": arguments.model,
        "micro_batch": arguments.micro_batch,
        "length": arguments.length,
        "vs_forward": median_ratio(seconds["forward"], seconds["proxy"]),
        "tokens_per_second": tokens / statistics.median(seconds["proxy"]),
        "tokens_per_second_forward": tokens / statistics.median(seconds["forward"]),
    }
    for name in TWO_SIDED:
        key = f"vs_{name}".replace("two_sided", "two_sided_kl")
        figures[key] = median_ratio(seconds[name], seconds["proxy"])
        figures[f"tokens_per_second_{name}"] = tokens / statistics.median(seconds[name])
    return figures


def memory(arguments: argparse.Namespace) -> Figures:
    """Peak memory of each way, in a process of its own.

    The processes of a quick run are forked, which saves their imports; so they come before
    anything that starts threads of torch, which a fork would lack.
    """
    measure = forked_peak if arguments.quick else fresh_peak
    return {
        "peak_mib" if kind == "proxy" else f"peak_mib_{kind}": measure(arguments, kind)
        for kind in ("proxy", *TWO_SIDED)
    }


def fresh_peak(arguments: argparse.Namespace, kind: str) -> float:
    """`peak_memory` in a fresh process: this script with ``--memory``."""
    command = [sys.executable, __file__, "--memory", kind]
    for option in ("model", "micro_batch", "length", "pool"):
        command += [f"--{option.replace('_', '-')}", str(getattr(arguments, option))]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def forked_peak(arguments: argparse.Namespace, kind: str) -> float:
    """`peak_memory` in a copy of this process."""
    with multiprocessing.get_context("fork").Pool(1) as workers:
        return workers.apply(peak_memory, (arguments, kind))


def peak_memory(arguments: argparse.Namespace, kind: str) -> float:
    """Highest rise of this process's memory in MiB, from loading the model to the values."""
    with PeakMemory() as watch:
        loaded = load_model(arguments.model)
        pool = random_pool(arguments, loaded)
        if kind == "proxy":
            evaluate = prepare_proxy(loaded, pool)
        else:
            evaluate = prepare_two_sided(loaded.model, pool, TWO_SIDED[kind])
        evaluate(len(pool))
    return watch.mib


if __name__ == "__main__":
    main()

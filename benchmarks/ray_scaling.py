"""What Ray costs: the driver's own time, and how workers add up.

Workers that only sleep, 200 ms for a candidate, without torch and on a hundredth of a core each:

- `overhead_ms`: of the driver for each candidate, with one worker, beside the sleeping (aim: 5);
- `efficiency_64`: of 64 such workers on one flat generation, against 64 times one (aim: 0.9);
- `efficiency_64_staged`: the same on stages of 256, 64, 16 and 4 candidates, each on four times as
  many micro-batches as the one before;
- `driver_limit_per_second`: candidates that the driver hands out in a second to `--simulated`
  workers, 64 to a process, that do not sleep at all.

With the real proxy on SmolLM2-135M:

- `two_workers_speedup`: two workers of one core each against one (aim: 1.7).
- `memory_per_worker_mib`: what each of two workers has for itself alone, so what another one would
  add (aim: below the library's size, `library_mib`).

    python benchmarks/ray_scaling.py --json ray.json

``--quick`` sleeps less, has fewer workers, and a tiny random model.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import cycle
from pathlib import Path

import psutil
import ray
from common import Figure, emit

from evocompress.compression.live_model import LiveModel
from evocompress.core.config import RunConfig
from evocompress.core.progress import Silent
from evocompress.core.requests import Answer, Evaluate, MicroBatchValue, Request, Result
from evocompress.core.types import DROP, Candidate
from evocompress.distributed import backend_of
from evocompress.distributed.executor import RayExecutor
from evocompress.distributed.telemetry import Telemetry, Who, who
from evocompress.pipeline.context import RunContext
from evocompress.pipeline.run_folder import RunFolder

CORES = 0.01
STAGES = (256, 64, 16, 4)
PROCESSES = 8


class Sleeper:
    """A worker that sleeps for each micro-batch."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def ready(self) -> Who:
        """At once."""
        return who()

    def answer(self, requests: Sequence[Evaluate]) -> list[Answer]:
        """Values of nothing."""
        return [self._one(request) for request in requests]

    def _one(self, request: Evaluate) -> Result:
        time.sleep(self._seconds * len(request.micro_batches))
        values = (MicroBatchValue(index, (0.0,), (1,)) for index in request.micro_batches)
        return Result(request, tuple(values))


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--simulated", type=int, default=512)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    quick: bool = arguments.quick
    ray.init(
        num_cpus=16, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1"
    )
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    figures = sleeping(0.02 if quick else 0.2, 4 if quick else 64)
    figures |= limit(4 if quick else arguments.simulated)
    figures |= real(quick)
    ray.shutdown()
    emit("ray_scaling", figures, arguments.json)


@contextmanager
def workers(count: int, seconds: float, processes: int | None = None) -> Iterator[RayExecutor]:
    """So many sleepers that have begun, each in a process of its own or some of them in one."""
    homes = processes or count
    actor = ray.remote(Sleeper).options(num_cpus=CORES, max_concurrency=-(-count // homes))
    handles = cycle([actor.remote(seconds) for _ in range(homes)])
    with (
        tempfile.TemporaryDirectory() as logs,
        closing(
            RayExecutor(
                lambda: next(handles),
                lambda: count,
                list,
                lambda r: len(r.micro_batches),
                _nothing,
                Telemetry("scaling", Path(logs), print),
            )
        ) as executor,
    ):
        executor._staff()
        ray.get([worker.starting for worker in executor._workers])
        # So that it knows the pace.
        list(executor.map(candidates(2 * count)))
        yield executor


def _nothing() -> None:
    """The cluster goes on."""


def candidates(count: int, micro_batches: int = 1) -> list[Request]:
    """So many different ones."""
    places = tuple(range(micro_batches))
    return [Evaluate(Candidate(((f"unit{n}", DROP),)), places) for n in range(count)]


def elapsed(executor: RayExecutor, requests: Sequence[Request]) -> float:
    """Seconds until all are answered."""
    start = time.perf_counter()
    assert len(list(executor.map(requests))) == len(requests)
    return time.perf_counter() - start


def sleeping(seconds: float, many: int) -> dict[str, Figure]:
    """Overhead, and efficiency of many."""
    with workers(1, seconds) as one:
        count = 20
        overhead = elapsed(one, candidates(count)) / count - seconds
    with workers(many, seconds) as crowd:
        flat = elapsed(crowd, candidates(10 * many))
        staged = sum(
            elapsed(crowd, candidates(count, 4**place)) for place, count in enumerate(STAGES)
        )
    work = sum(count * 4**place for place, count in enumerate(STAGES)) * seconds
    return {
        "overhead_ms": 1000 * overhead,
        "efficiency_64": 10 * seconds / flat,
        "efficiency_64_staged": work / many / staged,
    }


def limit(many: int) -> dict[str, Figure]:
    """How many candidates the driver can hand out."""
    with workers(many, 0.0, processes=min(many, PROCESSES)) as crowd:
        count = 20 * many
        return {"driver_limit_per_second": count / elapsed(crowd, candidates(count))}


def real(quick: bool) -> dict[str, Figure]:
    """One worker and two that hold a model."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        times, memory = {}, 0.0
        for count in (1, 2):
            context = workbench(folder, count, quick)
            with LiveModel(context.loaded, context.library) as live:
                executor = context.executor(live)
                assert isinstance(executor, RayExecutor)
                with closing(executor):
                    rng_requests = drops(context, 2 if quick else 24)
                    list(executor.map(rng_requests[:count]))
                    start = time.perf_counter()
                    list(executor.map(rng_requests))
                    times[count] = time.perf_counter() - start
                    memory = statistics.mean(own_memory(executor))
            library = context.library
            size = sum(file.stat().st_size for file in library.path.iterdir()) if library else 0
    return {
        "two_workers_speedup": times[1] / times[2],
        "memory_per_worker_mib": memory / 2**20,
        "library_mib": size / 2**20,
    }


def own_memory(executor: RayExecutor) -> list[int]:
    """Bytes of each worker that no other process shares: what would be free without it."""
    pids = [worker.who["pid"] for worker in executor._workers if worker.who]
    return [psutil.Process(pid).memory_full_info().uss for pid in pids]


def drops(context: RunContext, count: int) -> list[Request]:
    """Candidates without the last block's attention, the one's before, ..."""
    names = [unit.name for unit in context.units if unit.kind in ("attention", "mlp")]
    places = tuple(range(len(context.calibration.search)))
    chosen = names[::-1][:count]
    return [Evaluate(Candidate(((name, DROP),)), places) for name in chosen]


def workbench(folder: Path, count: int, quick: bool) -> RunContext:
    """A run with a small library, on so many workers of a core."""
    text = folder / "text.txt"
    text.write_text(" ".join(f"word{number * number % 997}" for number in range(20_000)))
    source = "demo:smollm2-135m"
    if quick:
        from evocompress.testing.tiny import tiny_checkpoint

        source = str(tiny_checkpoint(folder / f"model{count}"))
    config = RunConfig.model_validate(
        {
            "name": "scaling",
            "runs": folder,
            "executor": "ray",
            "ray": {"workers": count, "cpus": 1},
            "model": {"source": source},
            "calibration": {
                "source": str(text),
                "library_sequences": 1,
                "search_sequences": 2,
                "heldout_sequences": 1,
                "length": 32 if quick else 256,
                "micro_batch": 1,
            },
            "space": {"sparsity": {"target": 0.5, "levels": 2}, "drop": {}},
            "library": {"criterion": "magnitude", "path": folder / "library"},
        }
    )
    return RunContext(config, RunFolder(config.folder), Silent(), backend=backend_of(config))


if __name__ == "__main__":
    main()

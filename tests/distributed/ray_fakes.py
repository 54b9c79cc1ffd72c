"""Workers without a model, for the tests of Ray."""

import os
import sys
import time

import pytest

from evocompress.core.requests import Estimate, Estimation, Evaluate, MicroBatchValue, Result
from evocompress.core.types import DROP, Candidate
from evocompress.distributed.executor import RayExecutor
from evocompress.distributed.telemetry import Telemetry, who
from evocompress.distributed.worker import Refusal

ray = pytest.importorskip("ray")


class Fake:
    """A worker without a model, which does what the names of candidates say."""

    def __init__(self, seconds=0.0, die_at_start=False):
        if die_at_start:
            os._exit(1)
        self.seconds = seconds

    def ready(self):
        return who()

    def answer(self, requests):
        return [self.one(request) for request in requests]

    def one(self, request):
        names = [name for name, _ in request.candidate.levels]
        if "poison" in names:
            os._exit(1)
        if "print" in names:
            print("printed by a worker", file=sys.stderr, flush=True)
        if "hang" in names:
            time.sleep(1000)
        if "bug" in names:
            raise ZeroDivisionError("a bug")
        time.sleep(self.seconds)
        if isinstance(request, Estimate):
            return Estimation(request, ("u",), ((1.0,),))
        return expected(request)


class Refusing(Fake):
    """A worker that has another model."""

    def ready(self):
        return Refusal("a worker differs from the run in model")


def expected(request):
    total = float(sum(map(ord, request.candidate.id)))
    values = (MicroBatchValue(m, (total + m,), (1,)) for m in request.micro_batches)
    return Result(request, tuple(values))


def ask(name, micro_batches=(0,)):
    return Evaluate(Candidate(((name, DROP),)), micro_batches)


def executor(logs, workers=2, kind=Fake, cpus=0.1, admit=lambda who: None, **settings):
    """An executor on such workers, so many or as many as `workers` tells at the time."""
    actor = ray.remote(kind).options(num_cpus=cpus)
    return RayExecutor(
        lambda: actor.remote(**settings),
        workers if callable(workers) else lambda: workers,
        list,
        lambda _: 10,
        lambda: None,
        Telemetry("fakes", logs, print),
        admit,
    )

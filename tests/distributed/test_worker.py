"""A worker, in this process: what it computes, and when it refuses to."""

from dataclasses import replace

import pytest
import torch
from run_files import tiny_run

from evocompress.compression.live_model import LiveModel
from evocompress.core.config import RunConfig
from evocompress.core.environment import machine
from evocompress.core.progress import Silent
from evocompress.core.requests import Evaluate
from evocompress.core.types import Candidate
from evocompress.distributed.actors import assignment_of
from evocompress.distributed.worker import Refusal, Worker
from evocompress.pipeline.context import RunContext
from evocompress.pipeline.run_folder import RunFolder
from evocompress.space import sampling
from evocompress.testing.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    folder = tmp_path_factory.mktemp("worker")
    tiny_checkpoint(folder / "model")
    run = tiny_run(
        folder,
        {"library_sequences": 2, "search_sequences": 4, "heldout_sequences": 1},
        threads=torch.get_num_threads(),
        space={"width": {"multiple_of": 8, "channels": [0.5]}, "drop": {}},
    )
    config = RunConfig.model_validate(run)
    return RunContext(config, RunFolder(config.folder), Silent())


def test_it_answers_what_this_process_would(context):
    candidates = [context.space.candidate(sampling.uniform(context.space)), Candidate()]
    requests = [Evaluate(candidate, (0, 1)) for candidate in candidates]
    with LiveModel(context.loaded, context.library) as live:
        expected = list(context.executor(live).map(requests))
    worker = Worker(assignment_of(context), context.calibration)
    assert worker.ready()["machine"] == machine(torch.device("cpu"))
    answers = worker.answer(requests)
    assert isinstance(answers, list) and len(answers) == 2
    assert {a.request: a for a in answers} == {a.request: a for a in expected}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"expected": {"model": "another"}}, "differs from the run in model"),
        ({"expected": {"dtype": "float8", "device": "tpu"}}, "differs from the run in dtype, dev"),
        ({"timed_on": "cuda: NVIDIA H200"}, "the latency table is of 'cuda: NVIDIA H200'"),
        ({"versions": {"torch": "1.0"}}, "versions than the driver (torch was 1.0, is"),
        ({"versions": {"own-criteria": "2.5"}}, "own-criteria was 2.5, is not installed): install"),
        ({"library": "/nowhere"}, "/nowhere: the level library is missing"),
    ],
)
def test_it_refuses_what_would_be_another_computation(context, change, reason):
    worker = Worker(replace(assignment_of(context), **change), context.calibration)
    refusal = worker.answer([])
    assert isinstance(refusal, Refusal)
    assert reason in refusal.reason and "\n" not in refusal.reason

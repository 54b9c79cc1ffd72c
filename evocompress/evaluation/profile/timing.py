"""Timing one forward pass of a model as it stands: a prefill, or a decoding step."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from evocompress.evaluation.heldout.latency import as_loaded
from evocompress.models.dummy_inputs import random_batch
from evocompress.models.tasks import CAUSAL, Task

Timer = Callable[[], float]
"""Seconds of one forward pass of a model in its present form."""

Stopwatch = Callable[[Callable[[], object]], float]
"""Seconds that a call takes, until its device is done."""

METHOD = 1
"""Version of the way of measuring, to be raised whenever the same model gets other times.

1: weights are marked trainable while they are timed (`as_loaded`).
"""

STEPS = 8
"""Decoding steps that are timed one after the other; the cache grows by as many tokens."""

UNTIMED_STEPS = 4


def cpu_seconds(call: Callable[[], object]) -> float:
    """Seconds of a call by the clock."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def cuda_seconds(call: Callable[[], object]) -> float:
    """Seconds of a call between two events on the current CUDA stream."""
    start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def stopwatch(device: torch.device) -> Stopwatch:
    """What measures calls on a device."""
    return cuda_seconds if device.type == "cuda" else cpu_seconds


def prefill(model: PreTrainedModel, batch: int, tokens: int) -> Timer:
    """Times a prefill of random tokens (batch, tokens) with a new KV cache, logits at the end."""
    ids, watch = random_batch(CAUSAL, model, batch, tokens), stopwatch(model.device)

    @torch.inference_mode()
    def run() -> float:
        with as_loaded(model):
            return watch(lambda: model(ids, use_cache=True, logits_to_keep=1))

    return run


def forward(task: Task, model: PreTrainedModel, batch: int, tokens: int) -> Timer:
    """Times a pass of a model that has no cache over random texts (batch, tokens), or images."""
    inputs, watch = random_batch(task, model, batch, tokens), stopwatch(model.device)

    @torch.inference_mode()
    def run() -> float:
        with as_loaded(model):
            return watch(lambda: task.run(model, inputs))

    return run


def decoding(model: PreTrainedModel, batch: int, context: int, *, graph: bool = False) -> Timer:
    """Times a decoding step of a token for each of `batch` sequences of `context` cached tokens.

    With `graph` the step is replayed as a CUDA graph, as an inference engine would: launching the
    operations of a small step one by one takes longer than the step itself.
    """
    ids, watch = random_batch(CAUSAL, model, batch, context), stopwatch(model.device)

    @torch.inference_mode()
    def run() -> float:
        with as_loaded(model):
            step = _Step.after(model, ids)
            step()
            call = _Graph.of(step) if graph else step
            return statistics.median(watch(call) for _ in range(STEPS))

    return run


@torch.inference_mode()
def can_be_captured(model: PreTrainedModel) -> bool:
    """Whether a decoding step of the model can become a CUDA graph.

    Not on other devices, and not where the step waits for a value from the GPU, as some
    position embeddings do.
    """
    if model.device.type != "cuda":
        return False
    with as_loaded(model):
        step = _Step.after(model, random_batch(CAUSAL, model, 1, 1))
        try:
            _Graph.of(step)
        except RuntimeError:
            return False
    return True


@dataclass(frozen=True, eq=False)
class _Step:
    """A decoding step; each call makes the cache one token longer."""

    model: PreTrainedModel
    cache: Cache
    token: Tensor

    @classmethod
    def after(cls, model: PreTrainedModel, ids: Tensor) -> _Step:
        """The step after a prompt `ids` (B, S)."""
        cache = model(ids, use_cache=True, logits_to_keep=1).past_key_values
        return cls(model, cache, ids[:, -1:])

    def __call__(self) -> None:
        self.model(self.token, past_key_values=self.cache, use_cache=True)


@dataclass(frozen=True, eq=False)
class _Graph:
    """A decoding step as a CUDA graph; each call repeats the very same step.

    Attributes:
        graph: What is replayed.
        inputs: The cache before the step, which the graph reads at each replay.
    """

    graph: torch.cuda.CUDAGraph
    inputs: Sequence[dict[str, Any]]

    @classmethod
    def of(cls, step: _Step) -> _Graph:
        """Capture a step, after steps on a side stream, which warm up kernels and allocator.

        Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
        """
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(UNTIMED_STEPS - 1):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        inputs = [dict(vars(layer)) for layer in step.cache.layers]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        return cls(graph, inputs)

    def __call__(self) -> None:
        self.graph.replay()

"""Latency of models that are compared with each other, measured in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evocompress.config import EvaluateConfig
from evocompress.errors import ConfigError
from evocompress.inputs import random_batch
from evocompress.tasks import CAUSAL, Task
from evocompress.types import Architecture

WARM_UPS = 1


@dataclass(frozen=True)
class Timing:
    """Seconds of a repeated measurement.

    Attributes:
        median: The middle one.
        fastest: The shortest.
        slowest: The longest.
    """

    median: float
    fastest: float
    slowest: float

    @property
    def spread(self) -> float:
        """Longest minus shortest, as a fraction of the median."""
        return (self.slowest - self.fastest) / self.median


@dataclass(frozen=True)
class Latency:
    """What a user of a model waits for.

    Attributes:
        prefill: One forward pass over a batch of prompts, or of what else the model takes.
        decode: Greedy decoding of all new tokens of one text, its prompt not counted; ``None``
            for a model that is not causal.
    """

    prefill: Timing
    decode: Timing | None


def check_lengths(config: EvaluateConfig, architecture: Architecture) -> None:
    """Whether the texts to be timed fit into a model; of images only the batch counts.

    Args:
        config: What is to be measured.
        architecture: The model's, whose context is the most tokens that it takes.

    Raises:
        ConfigError: The prompt of the prefill, or the prompt and new tokens of the decoding,
            are longer.
    """
    if not config.latency:
        return
    lengths = {} if architecture.tokens else {"prefill": config.prefill[1]}
    if architecture.causal:
        lengths["decode"] = sum(config.decode)
    context = architecture.context
    for key, tokens in lengths.items():
        if tokens > context:
            raise ConfigError(
                f"evaluate.{key} needs {tokens} tokens, but the model's context is {context}: "
                "lower it, or set evaluate.latency=false"
            )


@torch.inference_mode()
def measure_latency(
    models: Mapping[str, PreTrainedModel],
    *,
    prefill: tuple[int, int] = (1, 512),
    decode: tuple[int, int] = (128, 32),
    repeats: int = 5,
    seed: int = 0,
    task: Task = CAUSAL,
) -> dict[str, Latency]:
    """Time models in turns, so that a drift of the machine's speed hits all of them alike.

    Args:
        models: By name, all with the same vocabulary.
        prefill: (batch, tokens) of the timed prefill.
        decode: (prompt tokens, new tokens) of the timed decoding, batch 1, with a KV cache.
        repeats: Measurements of each, after a warm-up.
        seed: Of the random inputs.
        task: What the models are for.
    """
    if not task.causal:
        inputs = random_batch(task, next(iter(models.values())), *prefill, seed)
        passes = _in_turns(models, lambda model: _forward_seconds(task, model, inputs), repeats)
        return {name: Latency(timing, None) for name, timing in passes.items()}
    vocabulary: int = min(model.config.vocab_size for model in models.values())
    generator = torch.Generator().manual_seed(seed)
    batch = torch.randint(vocabulary, prefill, generator=generator)
    prompt = torch.randint(vocabulary, (1, decode[0]), generator=generator)
    prefills = _in_turns(models, lambda model: _prefill_seconds(model, batch), repeats)
    decodes = _in_turns(models, lambda model: _decode_seconds(model, prompt, decode[1]), repeats)
    return {name: Latency(prefills[name], decodes[name]) for name in models}


@contextmanager
def as_loaded(model: PreTrainedModel) -> Iterator[None]:
    """The weights marked trainable, as transformers loads them, also where they were frozen.

    PyTorch multiplies a single position by a frozen head in another way on a CPU, copying the
    head's weights first (``should_fold`` of its ``matmul``). That takes 50 ms for SmolLM2-135M,
    and a user's model does not do it.
    """
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _in_turns(
    models: Mapping[str, PreTrainedModel],
    measure: Callable[[PreTrainedModel], float],
    repeats: int,
) -> dict[str, Timing]:
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(WARM_UPS + repeats):
        for name, model in models.items():
            seconds[name].append(measure(model))
    return {name: _timing(values[WARM_UPS:]) for name, values in seconds.items()}


def _timing(seconds: list[float]) -> Timing:
    return Timing(statistics.median(seconds), min(seconds), max(seconds))


def _forward_seconds(task: Task, model: PreTrainedModel, batch: Tensor) -> float:
    batch = batch.to(model.device)
    with as_loaded(model):
        start = _now(model)
        model(**task.inputs(batch, model.dtype))
        return _now(model) - start


def _prefill_seconds(model: PreTrainedModel, ids: Tensor) -> float:
    ids = ids.to(model.device)
    with as_loaded(model):
        start = _now(model)
        model(ids, use_cache=True, logits_to_keep=1)
        return _now(model) - start


def _decode_seconds(model: PreTrainedModel, prompt: Tensor, new: int) -> float:
    with as_loaded(model):
        output = model(prompt.to(model.device), use_cache=True, logits_to_keep=1)
        start = _now(model)
        for _ in range(new):
            token = output.logits[:, -1:].argmax(-1)
            output = model(token, past_key_values=output.past_key_values, use_cache=True)
        return _now(model) - start


def _now(model: PreTrainedModel) -> float:
    """Seconds, once the device has finished what it was given."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()

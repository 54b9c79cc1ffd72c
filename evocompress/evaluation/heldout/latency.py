"""Latency of models that are compared with each other, measured in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evocompress.core.architecture import Architecture
from evocompress.core.config import EvaluateConfig
from evocompress.core.errors import ConfigError
from evocompress.evaluation.heldout.ratios import Ratio, in_turns, ratio
from evocompress.models.dummy_inputs import random_batch
from evocompress.models.families.uneven import text_config
from evocompress.models.tasks import CAUSAL, Task


@dataclass(frozen=True)
class Timing:
    """Seconds of a repeated measurement.

    Attributes:
        median: The middle one.
        fastest: The shortest.
        slowest: The longest.
        ratio: To the first model's; ``None`` of that model itself, or after a single turn.

    Examples:
        >>> Timing(median=0.2, fastest=0.1, slowest=0.3).ratio is None
        True
    """

    median: float
    fastest: float
    slowest: float
    ratio: Ratio | None = None


@dataclass(frozen=True)
class Latency:
    """The times that a user of a model waits for.

    Attributes:
        prefill: One forward pass over a batch of prompts, or of what else the model takes.
        decode: Greedy decoding of all new tokens of one text, its prompt not counted; ``None``
            for a model that is not causal.

    Examples:
        >>> Latency(prefill=Timing(0.2, 0.1, 0.3), decode=None).prefill.median
        0.2
    """

    prefill: Timing
    decode: Timing | None


def check_lengths(config: EvaluateConfig, architecture: Architecture) -> None:
    """Whether the texts to be timed fit into a model; of images only the batch counts.

    Raises:
        ConfigError: The prompt of the prefill, or the prompt and new tokens of the decoding,
            are longer.
    """
    if not config.latency:
        return
    remedy = "lower it, or set evaluate.latency=false"
    check_context("evaluate", config.prefill[1], sum(config.decode), architecture, remedy)


def check_context(
    section: str, prefill: int, decode: int, architecture: Architecture, remedy: str
) -> None:
    """Refuses texts of more tokens than a model takes; images have a length of their own.

    `prefill` and `decode` are tokens of a sequence, which keys of the run file's section set.
    """
    lengths = {} if architecture.tokens else {"prefill": prefill}
    if architecture.causal:
        lengths["decode"] = decode
    context = architecture.context
    for key, tokens in lengths.items():
        if tokens > context:
            raise ConfigError(
                f"{section}.{key} needs {tokens} tokens, but the model's context is {context}: "
                f"{remedy}"
            )


@torch.inference_mode()
def measure_latency(
    models: Mapping[str, PreTrainedModel],
    *,
    prefill: tuple[int, int] = (1, 512),
    decode: tuple[int, int] = (128, 32),
    repeats: int = 5,
    width: float = 0.0,
    seconds: float = 0.0,
    task: Task = CAUSAL,
) -> dict[str, Latency]:
    """Time models in turns, so that a drift of the machine's speed hits all of them alike.

    Args:
        models: By name, all with the same vocabulary; ratios are to the first.
        prefill: (batch, tokens) of the timed prefill.
        decode: (prompt tokens, new tokens) of the timed decoding, batch 1, with a KV cache.
        repeats: Measurements of each, at least, after a warm-up.
        width: There are more until the interval of no ratio is wider, see `in_turns`,
        seconds: or until prefill, and decoding, have each been timed for this long.
        task: What the models are for.
    """

    def timed(measure: Callable[[PreTrainedModel], float]) -> dict[str, Timing]:
        measures = {name: partial(measure, model) for name, model in models.items()}
        return _timings(in_turns(measures, repeats=repeats, width=width, seconds=seconds))

    if not task.causal:
        inputs = random_batch(task, next(iter(models.values())), *prefill)
        passes = timed(lambda model: _forward_seconds(task, model, inputs))
        return {name: Latency(timing, None) for name, timing in passes.items()}
    vocabulary: int = min(text_config(model.config).vocab_size for model in models.values())
    generator = torch.Generator().manual_seed(0)
    batch = torch.randint(vocabulary, prefill, generator=generator)
    prompt = torch.randint(vocabulary, (1, decode[0]), generator=generator)
    prefills = timed(lambda model: _prefill_seconds(model, batch))
    decodes = timed(lambda model: _decode_seconds(model, prompt, decode[1]))
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


def _timings(found: Mapping[str, Sequence[float]]) -> dict[str, Timing]:
    """Of every model, with the ratio to the first."""
    first, reference = next(iter(found.items()))
    return {
        name: Timing(
            statistics.median(seconds),
            min(seconds),
            max(seconds),
            None if name == first else ratio(seconds, reference),
        )
        for name, seconds in found.items()
    }


def _forward_seconds(task: Task, model: PreTrainedModel, batch: Tensor) -> float:
    batch = batch.to(model.device)
    with as_loaded(model):
        start = _now(model)
        task.run(model, batch)
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

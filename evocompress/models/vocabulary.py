"""The output head in slices of the vocabulary, for float32 on a CPU.

There the head's weights are large: to read them again for every few rows costs more than the
divergence itself. Here many rows go through one slice of the vocabulary after the other, so the
weights are read once, and a slice's logits stay in the cache until they have been summed. The
largest logit so far is carried along, as in the online softmax (Milakov & Gimelshein 2018,
arXiv 1805.02867).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evocompress.models.families import Family
from evocompress.models.families.derivation.family import Derived
from evocompress.models.families.logits import logits_of
from evocompress.models.head import SMALLEST

_PLAIN = Family.outputs, Derived.outputs

ROWS = 1024
SLICE_BYTES = 16 * 2**20
"""Of the logits of a slice: the allocator keeps this size; larger slices begin with page faults."""


def in_slices(family: Family, model: PreTrainedModel) -> bool:
    """Whether a model's head is better run so than in chunks of rows.

    Not where a family makes its outputs otherwise than by `Family.outputs`, whose logits alone
    are known to come in slices.
    """
    if getattr(family.outputs, "__func__", None) not in _PLAIN:
        return False
    head = model.get_output_embeddings()
    return head is not None and head.weight.device.type == "cpu" and model.dtype == torch.float32


def row_chunks(family: Family, hidden: Tensor) -> Iterator[Tensor]:
    """The states (rows, H) whose logits are compared, of final hidden states (B, S, H)."""
    yield from torch.split(family.task.states(hidden), ROWS)


def likeliest(family: Family, model: PreTrainedModel, states: Tensor, count: int) -> Tensor:
    """The `count` likeliest tokens (R, k), int32, of states (R, H), in no order."""
    values = states.new_empty(len(states), 0)
    tokens = torch.empty(values.shape, dtype=torch.int64)
    for begin, logits in _slices(family, model, states):
        numbers = torch.arange(begin, begin + logits.shape[1]).expand_as(logits)
        values, tokens = torch.cat([values, logits], 1), torch.cat([tokens, numbers], 1)
        values, places = values.topk(min(count, values.shape[1]), sorted=False)
        tokens = tokens.gather(1, places)
    return tokens.int()


def log_probabilities(
    family: Family, model: PreTrainedModel, states: Tensor, tokens: Tensor
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of tokens (R, k) and of all others, of final states (R, H).

    Returns:
        What `evocompress.models.head.bucket_log_probabilities` gives: float32 (R, k) and (R,).
    """
    chosen = torch.empty(tokens.shape)
    largest = torch.full((len(states),), -torch.inf)
    rest = torch.zeros(len(states))
    for begin, logits in _slices(family, model, states):
        within = (tokens >= begin) & (tokens < begin + logits.shape[1])
        rows = within.nonzero()[:, 0]
        places = rows * logits.shape[1] + (tokens[within] - begin)
        chosen[within] = logits.view(-1)[places]
        largest_yet = torch.maximum(largest, logits.amax(-1))
        rest *= (largest - largest_yet).exp_()
        logits.sub_(largest_yet[:, None]).exp_().view(-1)[places] = 0.0
        rest += logits.sum(-1)
        largest = largest_yet
    chosen -= largest[:, None]
    rest.clamp_(min=SMALLEST)
    log_total = (chosen.exp().sum(-1) + rest).log_()
    return chosen - log_total[:, None], rest.log_() - log_total


def _slices(family: Family, model: PreTrainedModel, states: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The first token of each slice, and its logits (R, v), which may be overwritten."""
    vocabulary = len(model.get_output_embeddings().weight)
    width = max(1, SLICE_BYTES // (len(states) * states.element_size()))
    for begin in range(0, vocabulary, width):
        yield begin, logits_of(model, states, family.logit_keys, slice(begin, begin + width))

"""The output head in row chunks: no full logits, and no float32 copy of them, are ever held.

A row is one position of one sequence. Logits are made in the model's own dtype, as a plain
forward pass makes them, and turned into float32 a few rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evocompress.models.families import Family
from evocompress.models.tasks import ALL_ROWS

# On a CPU a chunk of logits should stay in the last-level cache until it has been used, and
# its float32 working copy in the cores' own; a GPU wants few large kernels instead. In float32
# the head's weights are so large that reading them once a chunk costs more than the cache saves:
# with 49,152 tokens, on two AVX2 cores, chunks of 42, 85, 170, 341 and 1022 rows took 2.2, 1.6,
# 1.3, 1.2 and 1.1 times the bare product (`benchmarks/speed.py`). Not measured anew at each start:
# the last digits of logits depend on it.
CPU_LOGIT_BYTES = 16 * 2**20
CPU_FLOAT32_LOGIT_BYTES = 64 * 2**20
CPU_FLOAT32_BYTES = 4 * 2**20
GPU_BYTES = 256 * 2**20

SMALLEST = torch.finfo(torch.float32).tiny


def output_chunks(family: Family, model: PreTrainedModel, hidden: Tensor) -> Iterator[Tensor]:
    """The outputs that are compared: the logits of every position but each sequence's last.

    Other tasks have one output a sequence, which come all at once: logits (B, C) of classes,
    scores (B, C) or embeddings (B, H). Hidden states are those behind the final norm (B, S, H).

    Yields:
        Outputs (R, V) in the model's dtype, in total B·(S-1) rows, sequence by sequence.
    """
    for rows in torch.split(family.task.states(hidden), chunk_rows(model)):
        yield family.outputs(model, rows)


def chunk_rows(model: PreTrainedModel) -> int:
    """Rows of each chunk that `output_chunks` yields; the last one may be shorter.

    Without a head over a vocabulary nothing is large, and all rows come at once.
    """
    embeddings = model.get_output_embeddings()
    if embeddings is None:
        return ALL_ROWS
    head = embeddings.weight
    limit = chunk_bytes(head.device.type == "cpu", head.element_size())
    return _rows(limit, head.shape[0] * head.element_size())


def chunk_bytes(on_cpu: bool, itemsize: int) -> int:
    """Bytes of a chunk of logits with `itemsize` bytes each."""
    if not on_cpu:
        return GPU_BYTES
    return CPU_LOGIT_BYTES if itemsize < torch.float32.itemsize else CPU_FLOAT32_LOGIT_BYTES


def bucket_log_probabilities(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of chosen tokens and of all the other tokens together.

    The rest is summed from its own logits, not taken as one minus the chosen tokens, which would
    lose every digit where those have nearly all the probability. The logits (R, V) are in any
    floating dtype; each row has different token ids (R, k) of an integer dtype.

    Returns:
        Float32 log-probabilities (R, k) of `tokens`, and (R,) of the rest. The rest is clamped
        at a probability of about 1e-38, also where there is none (k = V).
    """
    limit = CPU_FLOAT32_BYTES if logits.device.type == "cpu" else GPU_BYTES
    rows = _rows(limit, logits.shape[-1] * torch.float32.itemsize)
    parts = [
        _buckets(part.to(torch.float32, copy=True), chosen.long())
        for part, chosen in zip(torch.split(logits, rows), torch.split(tokens, rows), strict=True)
    ]
    return torch.cat([top for top, _ in parts]), torch.cat([rest for _, rest in parts])


def _buckets(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The same for few rows of float32 logits, which are overwritten."""
    shifted = logits.sub_(logits.amax(-1, keepdim=True))
    chosen = shifted.gather(-1, tokens)
    rest = shifted.exp_().scatter_(-1, tokens, 0.0).sum(-1).clamp_(min=SMALLEST)
    log_total = (chosen.exp().sum(-1) + rest).log_()
    return chosen - log_total[:, None], rest.log_() - log_total


def _rows(limit: int, row_bytes: int) -> int:
    """How many rows fit into `limit` bytes, at least one."""
    return max(1, limit // row_bytes)

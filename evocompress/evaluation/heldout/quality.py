"""Held-out quality over the whole vocabulary in float32; shares no code with the proxies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

# Rows whose float32 log-probabilities are held at once: 12 MiB each for 49,152 tokens.
ROWS = 64


@dataclass(frozen=True)
class Quality:
    """How a model does on held-out sequences, in nats; every sequence weighs the same.

    Attributes:
        kl: Mean over positions of KL(dense || model) over the whole vocabulary.
        kl_sd: Standard deviation over sequences of their own mean KL; 0 for one sequence.
        kl_p99: The 99th percentile of the KL over all positions: what the mean hides.
        kl_topk: Mean KL with all but the dense model's likeliest tokens in one bucket; a lower
            bound of `kl`.
        perplexity: Exponential of the mean negative log-likelihood of the next token.
        sequences: How many sequences.
        positions: Positions counted in each: all but the last.
        kl_per_sequence: Mean KL of each sequence, for paired comparisons.

    Examples:
        >>> from evocompress.testing.tiny import tiny_model
        >>> dense, ids = tiny_model("llama"), torch.arange(16)[None]
        >>> heldout_quality(dense, {"dense": dense}, ids)["dense"].kl
        0.0
    """

    kl: float
    kl_sd: float
    kl_p99: float
    kl_topk: float
    perplexity: float
    sequences: int
    positions: int
    kl_per_sequence: tuple[float, ...]


@torch.inference_mode()
def heldout_quality(
    dense: PreTrainedModel,
    models: Mapping[str, PreTrainedModel],
    sequences: Tensor,
    *,
    batch: int = 1,
    top_k: int = 256,
) -> dict[str, Quality]:
    """Compare models with the dense model, which is run once for all of them.

    Holds the logits of one batch of every model, in the models' own dtypes.

    Args:
        dense: The dense model.
        models: What to compare, by name; all on the same device as `dense`. `dense` itself
            may be among them.
        sequences: Token ids (M, S).
        batch: Sequences of a forward pass; bfloat16 results depend on it.
        top_k: Tokens that `Quality.kl_topk` keeps apart, at most V.

    Returns:
        The quality of each model. Values are not finite where a model's logits are not.
    """
    values: dict[str, list[Tensor]] = {name: [] for name in models}
    for ids in torch.split(sequences.to(dense.device), batch):
        reference = _logits(dense, ids)
        for name, model in models.items():
            logits = reference if model is dense else _logits(model, ids)
            values[name] += [
                _position_values(*of_sequence, top_k)
                for of_sequence in zip(reference, logits, ids, strict=True)
            ]
    return {name: _quality(torch.stack(found)) for name, found in values.items()}


def _logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Logits (B, S, V) of one forward pass."""
    logits: Tensor = model(ids, use_cache=False).logits
    return logits


def _position_values(dense: Tensor, logits: Tensor, ids: Tensor, top_k: int) -> Tensor:
    """KL, bucketed KL and negative log-likelihood (3, S - 1) of each position, of logits (S, V)."""
    found = []
    for start in range(0, len(ids) - 1, ROWS):
        rows = slice(start, min(start + ROWS, len(ids) - 1))
        log_p = dense[rows].float().log_softmax(-1)
        log_q = logits[rows].float().log_softmax(-1)
        following = ids[rows.start + 1 : rows.stop + 1, None]
        values = (
            _divergence(log_p, log_q),
            _bucket_divergence(log_p, log_q, top_k),
            -log_q.gather(-1, following)[:, 0],
        )
        found.append(torch.stack(values))
    return torch.cat(found, 1).cpu()


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) of each row of log-probabilities (R, V): (R,)."""
    return torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


def _bucket_divergence(log_p: Tensor, log_q: Tensor, top_k: int) -> Tensor:
    """KL(p || q) of each row with all but p's `top_k` likeliest tokens as one token: (R,)."""
    if top_k >= log_p.shape[-1]:
        return _divergence(log_p, log_q)
    top = log_p.topk(top_k).indices
    rest_p, rest_q = (
        log.scatter(-1, top, float("-inf")).logsumexp(-1, keepdim=True) for log in (log_p, log_q)
    )
    bucketed_p = torch.cat([log_p.gather(-1, top), rest_p], -1)
    bucketed_q = torch.cat([log_q.gather(-1, top), rest_q], -1)
    return _divergence(bucketed_p, bucketed_q)


def _quality(values: Tensor) -> Quality:
    """From the three values of each position of each sequence (M, 3, S - 1)."""
    means = values.double().mean(2)
    kl, kl_topk, loss = means.mean(0).tolist()
    per_sequence = means[:, 0]
    return Quality(
        kl=kl,
        kl_sd=float(per_sequence.std()) if len(means) > 1 else 0.0,
        kl_p99=float(np.quantile(values[:, 0].double().numpy(), 0.99)),
        kl_topk=kl_topk,
        perplexity=float(torch.tensor(loss, dtype=torch.float64).exp()),
        sequences=len(means),
        positions=values.shape[2],
        kl_per_sequence=tuple(per_sequence.tolist()),
    )

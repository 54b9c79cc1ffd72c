"""Held-out quality of models with one output a sequence; shares no code with the proxies.

All in float64: a distance between embeddings that hardly differ is a small difference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import scipy  # type: ignore[import-untyped]
import torch
from torch import Tensor
from transformers import PreTrainedModel

from evocompress.models.tasks import Task

Measures = dict[str, float | None]
"""By the names that evaluation.json gives them."""


@torch.inference_mode()
def output_quality(
    task: Task,
    dense: PreTrainedModel,
    models: Mapping[str, PreTrainedModel],
    heldout: Tensor,
    labels: Tensor | None = None,
    *,
    batch: int = 1,
) -> dict[str, Measures]:
    """Compare models with the dense model.

    Args:
        task: What they are for.
        dense: The dense model.
        models: What to compare, by name; `dense` may be among them.
        heldout: Token ids (M, S) or pixel values (M, C, H, W).
        labels: The true classes (M,), where they are known.
        batch: Sequences of a forward pass.

    Returns:
        Of classifiers ``kl`` (mean KL(dense || model) over the classes, nats), ``kl_sd`` over the
        sequences, ``agreement`` (share of sequences of the dense model's class) and ``accuracy``
        (share of the true class); of embedding models ``distance`` (mean of one minus the cosine
        to the dense model's embedding) and ``spearman`` (rank correlation of all pairwise
        similarities with the dense model's); of models that score texts ``score_error`` (root of
        the mean squared difference to the dense model's scores) and ``score_spearman`` (rank
        correlation with them).
    """
    collect = partial(_embeddings, task) if task.compared == "embeddings" else _logits
    reference = _all(collect, task, dense, heldout, batch)
    found = {
        name: reference if model is dense else _all(collect, task, model, heldout, batch)
        for name, model in models.items()
    }
    if task.compared == "scores":
        return {name: _of_scores(reference, values) for name, values in found.items()}
    if task.compared == "embeddings":
        return {name: _of_embeddings(reference, values) for name, values in found.items()}
    return {name: _of_logits(reference, values, labels) for name, values in found.items()}


Collect = Callable[[object], Tensor]


def _all(
    collect: Collect, task: Task, model: PreTrainedModel, heldout: Tensor, batch: int
) -> Tensor:
    parts = torch.split(heldout.to(model.device), batch)
    return torch.cat([collect(task.run(model, part)).double().cpu() for part in parts])


def _logits(output: object) -> Tensor:
    logits: Tensor = output.logits  # type: ignore[attr-defined]
    return logits


def _embeddings(task: Task, output: object) -> Tensor:
    """Those of a task, not yet of unit length."""
    if task.pooling == "mean":
        states: Tensor = output.last_hidden_state  # type: ignore[attr-defined]
        return states.double().mean(1)
    return task.pooled(output)


def _of_logits(dense: Tensor, logits: Tensor, labels: Tensor | None) -> Measures:
    log_p, log_q = dense.log_softmax(-1), logits.log_softmax(-1)
    divergences = (log_p.exp() * (log_p - log_q)).sum(-1)
    chosen = logits.argmax(-1)
    right = None if labels is None else float((chosen == labels).double().mean())
    return {
        "kl": float(divergences.mean()),
        "kl_sd": float(divergences.std()) if len(divergences) > 1 else 0.0,
        "agreement": float((chosen == dense.argmax(-1)).double().mean()),
        "accuracy": right,
    }


def _of_embeddings(dense: Tensor, embeddings: Tensor) -> Measures:
    one, other = (each / each.norm(dim=-1, keepdim=True) for each in (dense, embeddings))
    return {
        "distance": float((1 - (one * other).sum(-1)).clamp(min=0).mean()),
        "spearman": similarity_correlation(one.numpy(), other.numpy()),
    }


def _of_scores(dense: Tensor, scores: Tensor) -> Measures:
    """Over all scores of all sequences, the root of the mean squared error and the ranks."""
    correlation = scipy.stats.spearmanr(dense.ravel().numpy(), scores.ravel().numpy()).statistic
    return {
        "score_error": float((scores - dense).square().mean().sqrt()),
        "score_spearman": float(correlation) if dense.numel() > 2 else None,
    }


def similarity_correlation(one: np.ndarray, other: np.ndarray) -> float | None:
    """Spearman's correlation of the similarities of all pairs of rows (M, H), of unit length.

    ``None`` with fewer than three rows, which have no two pairs to be ranked.
    """
    if len(one) < 3:
        return None
    pairs = np.triu_indices(len(one), 1)
    return float(scipy.stats.spearmanr((one @ one.T)[pairs], (other @ other.T)[pairs]).statistic)

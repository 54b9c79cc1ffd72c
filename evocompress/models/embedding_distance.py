"""How far sentence embeddings are from others, by themselves and by their similarities.

Similarities are what embeddings are used for, and keeping those of a batch is what distilling one
embedding model into another trains on (relational knowledge distillation, 1904.05068). Users judge
by their order, which neither a shift nor a scale of all of them changes. All embeddings here,
(B, H), have unit length.
"""

import torch
from torch import Tensor

FEWEST = 4
"""Embeddings whose similarities to each other have an order worth the name."""


def own_distances(embeddings: Tensor, target: Tensor) -> Tensor:
    """One minus the cosine of each embedding of unit length (B, H) and where it should be: (B,).

    As half a square: one minus a cosine near one would lose half of the digits.
    """
    return (embeddings - target).square().sum(-1) / 2


def similarity_errors(embeddings: Tensor, target: Tensor) -> Tensor:
    """The mean square of the error of each one's similarities to the others: (B,)."""
    errors = (embeddings @ embeddings.T - target @ target.T).fill_diagonal_(0)
    return errors.square().sum(-1) / max(1, len(target) - 1)


def similarity_disorders(embeddings: Tensor, target: Tensor) -> Tensor:
    """One minus Pearson's correlation of each one's similarities to the others: (B,), float64.

    Raises:
        ValueError: There are fewer than `FEWEST`: each has too few others for an order.
    """
    if len(target) < FEWEST:
        raise ValueError(f"{len(target)} embeddings have no order: give at least {FEWEST}")
    found, wanted = (_standard(each.double()) for each in (embeddings, target))
    return (found - wanted).square().sum(-1) / 2


def _standard(embeddings: Tensor) -> Tensor:
    """Each one's similarities to the others (B, B - 1), centred and of unit length."""
    count = len(embeddings)
    others = ~torch.eye(count, dtype=torch.bool, device=embeddings.device)
    similarities = (embeddings @ embeddings.T)[others].view(count, count - 1)
    return torch.nn.functional.normalize(similarities - similarities.mean(1, keepdim=True), dim=-1)


def distances(embeddings: Tensor, target: Tensor) -> Tensor:
    """What healing makes small: `own_distances` plus `similarity_errors`."""
    return own_distances(embeddings, target) + similarity_errors(embeddings, target)


def disagreements(embeddings: Tensor, target: Tensor) -> Tensor:
    """What candidates are compared by: `own_distances` plus `similarity_disorders`.

    The errors of similarities are small where embeddings are close already; their correlation
    prefers what users judge by, the order (``benchmarks/embedding_proxy.py``).
    """
    disorders = similarity_disorders(embeddings, target)
    return own_distances(embeddings, target) + disorders.to(target.dtype)

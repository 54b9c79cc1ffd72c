"""How far sentence embeddings are from others, by themselves and by their similarities.

Similarities are what embeddings are used for, and keeping those of a batch is what distilling one
embedding model into another trains on (relational knowledge distillation, 1904.05068). All
embeddings here, (B, H), have unit length.
"""

from torch import Tensor


def own_distances(embeddings: Tensor, target: Tensor) -> Tensor:
    """One minus the cosine of each embedding (B, H) and where it should be (B, H): (B,).

    As half a square: one minus a cosine near one would lose half of the digits.
    """
    return (embeddings - target).square().sum(-1) / 2


def similarity_errors(embeddings: Tensor, target: Tensor) -> Tensor:
    """The mean square error (B,) of the similarities of each embedding (B, H) to the others."""
    errors = (embeddings @ embeddings.T - target @ target.T).fill_diagonal_(0)
    return errors.square().sum(-1) / max(1, len(target) - 1)


def distances(embeddings: Tensor, target: Tensor) -> Tensor:
    """The sum (B,) of both of the above: what candidates are compared by and healing lowers.

    Weighing the order of similarities instead (one minus their correlation) found no better
    candidates (``benchmarks/embedding_proxy.py``).
    """
    return own_distances(embeddings, target) + similarity_errors(embeddings, target)

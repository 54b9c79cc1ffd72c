"""How far sentence embeddings are from others, by themselves and by their similarities.

Similarities are what embeddings are used for, and keeping those of a batch is what distilling one
embedding model into another trains on (relational knowledge distillation, 1904.05068).
"""

from torch import Tensor


def distances(embeddings: Tensor, target: Tensor) -> Tensor:
    """How far the embeddings of a micro-batch are from where they should be.

    Args:
        embeddings: Of unit length (B, H).
        target: Of unit length (B, H).

    Returns:
        (B,): one minus the cosine of both, and the mean square of the error of its similarities
        to the other sequences of the micro-batch.
    """
    # As half a square: one minus a cosine near one would lose half of the digits.
    own = (embeddings - target).square().sum(-1) / 2
    errors = (embeddings @ embeddings.T - target @ target.T).fill_diagonal_(0)
    return own + errors.square().sum(-1) / max(1, len(target) - 1)

"""What models that are no decoders make of a sequence: an embedding, or classes' logits."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from evocompress.core.errors import ModelError
from evocompress.models.tasks import Pooling, pooled


def embedding(hidden: Tensor, pooling: Pooling) -> Tensor:
    """The embeddings (B, H), of unit length, of the hidden states (B, S, H) of whole sequences."""
    return normalize(pooled(hidden, pooling), dim=-1)


def check_classes(model: PreTrainedModel) -> None:
    """Refuse a classifier whose outputs are no distribution over classes."""
    config = model.config
    outputs = config.num_labels or 0
    if outputs < 2 or config.problem_type in ("regression", "multi_label_classification"):
        raise ModelError(
            f"this {config.model_type} model has {outputs} outputs "
            f"(problem_type {config.problem_type}) that are no distribution over classes, which "
            "is not supported: use a classifier of two or more exclusive classes"
        )

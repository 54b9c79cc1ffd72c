"""The interface for models that are no decoders: attention in both directions, and no cache."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from evocompress.core.errors import ModelError
from evocompress.core.widths import Widths
from evocompress.models.families.base import Family
from evocompress.models.families.branches import Attributes, SubLayerName
from evocompress.models.tasks import Pooling, pooled


class Encoder(Family):
    """Every token sees all others; a sequence has one output, whatever its length."""

    norm_path = ""
    two_way = True

    def narrowing(self, block: nn.Module, sublayer: SubLayerName, widths: Widths) -> Attributes:
        """Nothing: their attention takes as many heads as its matrices have."""
        return {}

    def _outer_flops(self, model: PreTrainedModel) -> int:
        """Those of all linear modules, which must run once a sequence, as a classifier does."""
        within = {id(module) for module in self.blocks(model).modules()}
        outer = (module for module in model.modules() if id(module) not in within)
        return sum(2 * module.weight.numel() for module in outer if isinstance(module, nn.Linear))


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

"""Vision transformers for image classification: ViT and DeiT."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from evocompress.core.types import Architecture
from evocompress.models.families.branches import Matrix, SubLayer
from evocompress.models.families.encoder import Encoder, check_classes
from evocompress.models.tasks import DISTILLED_IMAGE_CLASSES, IMAGE_CLASSES


class ViT(Encoder):
    """Pre-norm blocks over the patches of an image behind a class token."""

    model_type = "vit"
    task = IMAGE_CLASSES
    layers_path = "vit.layers"
    norm_path = "vit.layernorm"
    unused = r"(vit\.)?pooler\..*"
    attention = SubLayer(
        matrices=(
            Matrix("attention.q_proj", "attention", "attention_in", rows=("query",)),
            Matrix("attention.k_proj", "attention", "attention_in", rows=("key",)),
            Matrix("attention.v_proj", "attention", "attention_in", rows=("value",)),
            Matrix("attention.o_proj", "attention", "attention_out", columns=("query",)),
        ),
        identity_modules=("layernorm_before",),
        zero_module="attention",
    )
    mlp = SubLayer(
        matrices=(
            Matrix("mlp.fc1", "mlp", "mlp_in", rows=("channel",)),
            Matrix("mlp.fc2", "mlp", "mlp_out", columns=("channel",)),
        ),
        identity_modules=("layernorm_after",),
        zero_module="mlp",
    )

    def check(self, model: PreTrainedModel) -> None:
        """Refuse outputs that are no classes."""
        check_classes(model)

    def architecture(self, model: PreTrainedModel) -> Architecture:
        """See `Family.architecture`; images of one size have one number of patches."""
        return replace(super().architecture(model), tokens=self._context(model))

    def outputs(self, model: PreTrainedModel, hidden: Tensor) -> Tensor:
        """The logits (B, C) of the classes, from the class token's state."""
        head: Any = model
        logits: Tensor = head.classifier(hidden[:, 0])
        return logits

    def _context(self, model: PreTrainedModel) -> int:
        body: Any = model.base_model
        positions: int = body.embeddings.position_embeddings.shape[1]
        return positions

    def _outer_flops(self, model: PreTrainedModel) -> int:
        """The patches' projection and the head."""
        body: Any = model.base_model
        patches = body.embeddings.patch_embeddings
        projection = 2 * patches.projection.weight.numel() * patches.num_patches
        return super()._outer_flops(model) + int(projection)


class DeiT(ViT):
    """ViT's blocks, and one token more, which the classifier of such models does not read."""

    model_type = "deit"
    layers_path = "deit.layers"
    norm_path = "deit.layernorm"
    unused = r"(deit\.)?pooler\..*"


class DistilledDeiT(DeiT):
    """DeiT as it is published: a classifier of each of the two tokens, whose mean counts."""

    task = DISTILLED_IMAGE_CLASSES

    def outputs(self, model: PreTrainedModel, hidden: Tensor) -> Tensor:
        """The logits (B, C) of the classes, the mean of both heads'."""
        head: Any = model
        logits: Tensor = head.cls_classifier(hidden[:, 0])
        distilled: Tensor = head.distillation_classifier(hidden[:, 1])
        return (logits + distilled) / 2

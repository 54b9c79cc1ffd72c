"""BERT and its relatives, as embedding models and as classifiers: MiniLM is one of them."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from evocompress.core.errors import ModelError
from evocompress.models.families.branches import Matrix, SubLayer
from evocompress.models.families.encoder import Encoder, check_classes, embedding
from evocompress.models.tasks import EMBEDDINGS, TEXT_CLASSES

ATTENTION = SubLayer(
    matrices=(
        Matrix("attention.self.query", "attention", "attention_in", rows=("query",)),
        Matrix("attention.self.key", "attention", "attention_in", rows=("key",)),
        Matrix("attention.self.value", "attention", "attention_in", rows=("value",)),
        Matrix("attention.output.dense", "attention", "attention_out", columns=("query",)),
    ),
    identity_modules=("attention.output.dense", "attention.output.LayerNorm"),
    zero_module="attention.self",
    norm_after="attention.output.LayerNorm",
)
MLP = SubLayer(
    matrices=(
        Matrix("intermediate.dense", "mlp", "mlp_in", rows=("channel",)),
        Matrix("output.dense", "mlp", "mlp_out", columns=("channel",)),
    ),
    identity_modules=("intermediate.dense", "intermediate.intermediate_act_fn", "output.LayerNorm"),
    zero_module="output.dense",
    norm_after="output.LayerNorm",
)


class Bert(Encoder):
    """Post-norm blocks with biases everywhere; the mean of the last states is the embedding.

    A block is ``LayerNorm(x + attention(x))`` and ``LayerNorm(x + mlp(x))``. A removed sub-layer
    takes its norm with it: what enters it has just left another norm, and so a removed block is
    the identity, as if it had never been in the list of blocks.
    """

    model_type = "bert"
    task = EMBEDDINGS
    layers_path = "encoder.layer"
    attention = ATTENTION
    mlp = MLP
    unused = r"(bert\.)?pooler\..*|cls\..*"

    def check(self, model: PreTrainedModel) -> None:
        """Refuse the decoder that a BERT can be configured to be."""
        config = model.config
        if config.is_decoder or config.add_cross_attention:
            raise ModelError(
                f"this {self.model_type} model is a decoder (is_decoder, add_cross_attention), "
                "which is not supported: use an encoder"
            )

    def outputs(self, model: PreTrainedModel, hidden: Tensor) -> Tensor:
        """The embeddings (B, H): the mean over the tokens, of unit length."""
        return embedding(hidden, self.task.pooling)


class BertClassifier(Bert):
    """The same body below a pooler and a classifier of the first token's state."""

    task = TEXT_CLASSES
    layers_path = "bert.encoder.layer"
    unused = r"cls\..*"

    def check(self, model: PreTrainedModel) -> None:
        """Refuse decoders, and outputs that are no classes."""
        super().check(model)
        check_classes(model)

    def outputs(self, model: PreTrainedModel, hidden: Tensor) -> Tensor:
        """The logits (B, C) of the classes."""
        head: Any = model
        logits: Tensor = head.classifier(head.bert.pooler(hidden))
        return logits


class Roberta(Bert):
    """BERT's blocks; positions are counted from behind the padding token's id."""

    model_type = "roberta"
    unused = r"(roberta\.)?pooler\..*|lm_head\..*"

    def _context(self, model: PreTrainedModel) -> int:
        context: int = super()._context(model) - model.config.pad_token_id - 1
        return context


class RobertaClassifier(Roberta):
    """The same body below a classifier of the first token's state."""

    task = TEXT_CLASSES
    layers_path = "roberta.encoder.layer"

    def check(self, model: PreTrainedModel) -> None:
        """Refuse decoders, and outputs that are no classes."""
        super().check(model)
        check_classes(model)

    def outputs(self, model: PreTrainedModel, hidden: Tensor) -> Tensor:
        """The logits (B, C) of the classes."""
        head: Any = model
        logits: Tensor = head.classifier(hidden)
        return logits


class XLMRoberta(Roberta):
    """RoBERTa for many languages: multilingual E5 and paraphrase models."""

    model_type = "xlm-roberta"


class XLMRobertaClassifier(RobertaClassifier):
    """The same as a classifier."""

    model_type = "xlm-roberta"

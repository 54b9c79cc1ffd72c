"""Decoders without a head for tokens: classifiers, reward models and rerankers, and embeddings.

`headless` derives both of a family of decoders.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Self

from torch import Tensor
from transformers import PreTrainedModel

from evocompress.core.types import Architecture
from evocompress.models.families.base import Family, with_task
from evocompress.models.families.encoder import embedding
from evocompress.models.tasks import DECODER_CLASSES, DECODER_EMBEDDINGS, SCORES


class DecoderClassifier(Family):
    """A decoder below a linear classifier, which reads the last token's state.

    The classes of transformers skip padding at a sequence's end; here there is none.
    """

    task = DECODER_CLASSES

    def bound(self, model: PreTrainedModel) -> Self:
        """With one output, or several that do not exclude each other, it is one of scores."""
        config = model.config
        independent = config.problem_type in ("regression", "multi_label_classification")
        return with_task(self, SCORES) if independent or (config.num_labels or 1) < 2 else self

    def architecture(self, model: PreTrainedModel) -> Architecture:
        """See `Family.architecture`; the classifier is run at every position."""
        return replace(super().architecture(model), vocabulary=model.config.num_labels or 0)

    def outputs(self, model: PreTrainedModel, hidden: Tensor) -> Tensor:
        """The logits or scores (B, C) of sequences."""
        head: Any = model
        logits: Tensor = head.score(hidden[:, -1])
        return logits


class DecoderEmbedding(Family):
    """A decoder whose final states are embeddings, pooled as sentence-transformers' files say."""

    layers_path = "layers"
    norm_path = "norm"
    task = DECODER_EMBEDDINGS
    unused = r"lm_head\..*"

    def outputs(self, model: PreTrainedModel, hidden: Tensor) -> Tensor:
        """The embeddings (B, H), of unit length."""
        return embedding(hidden, self.task.pooling)


def headless(*decoders: type[Family]) -> dict[str, Family]:
    """The classifiers and the embedding models of some families, by their names in `FAMILIES`.

    An embedding model is the body alone, so its paths lack the body's name.
    """
    found: dict[str, Family] = {}
    for family in decoders:
        name, kind = family.__name__, family.model_type
        paths = {
            key: getattr(family, key).partition(".")[2] for key in ("layers_path", "norm_path")
        }
        found[f"{kind}-classifier"] = _named(f"{name}Classifier", DecoderClassifier, family, {})()
        found[f"{kind}-embedding"] = _named(f"{name}Embedding", DecoderEmbedding, family, paths)()
    return found


def _named(
    name: str, base: type[Family], family: type[Family], attributes: dict[str, str]
) -> type[Family]:
    """A class of this module, so that its objects can be pickled."""
    own = {"__module__": __name__, "__doc__": f"{base.__doc__} Below it is `{family.__name__}`."}
    globals()[name] = found = type(name, (base, family), own | attributes)
    return found

"""The experts that a compressed checkpoint has left, by its config."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from transformers import PreTrainedConfig

from evocompress.models.families.derivation.block_kind import Kind
from evocompress.models.families.derivation.family import Derived
from evocompress.models.families.derivation.kept import reading_of
from evocompress.models.families.uneven import is_compressed, layer_config


def with_experts_left(family: Derived, config: PreTrainedConfig) -> Derived:
    """The family of a compressed model each of whose blocks has the experts that its config says.

    Args:
        family: Of the model in transformers.
        config: Of the compressed model, or of any other, whose family stays as it is.
    """
    if family.mixture is None or not is_compressed(config.model_type):
        return family
    each = [
        _with_experts_left(family.at(index).kinds[0], layer_config(config, index).edits)
        for index in range(len(family.order))
    ]
    kinds = [kind for place, kind in enumerate(each) if kind not in each[:place]]
    order = tuple(kinds.index(kind) for kind in each)
    return replace(reading_of(family), kinds=tuple(kinds), order=order).family


def _with_experts_left(kind: Kind, edits: Any) -> Kind:
    """A kind of block with as many experts as the edits of a block say."""
    part = kind.parts.get("mlp")
    if part is None or part.mixture is None:
        return kind
    path, mixture = part.mixture.experts, None  # where it is dropped
    if path in edits.get("experts", {}):
        count, _ = edits["experts"][path]
        members = edits.get("attributes", {}).get(f"{path}.numbers", range(count))
        mixture = part.mixture.with_experts(count, members)
    return replace(kind, parts={**kind.parts, "mlp": replace(part, mixture=mixture)})

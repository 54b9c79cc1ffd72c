"""FLOPs are no budget of a model of which not all operations are counted."""

from __future__ import annotations

import pytest

from evocompress.core.errors import ConfigError
from evocompress.models.families import family_of
from evocompress.models.tasks import (
    CAUSAL,
    EMBEDDINGS,
    IMAGE_CLASSES,
    IMAGE_EMBEDDINGS,
    TEXT_CLASSES,
    Task,
)
from evocompress.space.budget import resolve
from evocompress.space.costs import CostModel, cost_model
from evocompress.testing.costs import counted_flops
from evocompress.testing.derived import typical_config, typical_model

LENGTH = 24


def costs(name: str, task: Task = CAUSAL) -> tuple[CostModel, int]:
    """The costs of a tiny model, and the operations that torch counts."""
    model = typical_model(typical_config(name), task=task)
    family = family_of(model)
    architecture = family.architecture(model)
    counted = counted_flops(model, architecture, family, LENGTH)
    length = architecture.tokens or LENGTH
    return cost_model(family.units(model), architecture, length=length), counted


@pytest.mark.parametrize("name", ["recurrent_gemma", "jetmoe"])
def test_operations_beside_the_matrices_are_not_bounded(name: str) -> None:
    model, _ = costs(name)
    for cost in ("flops", "decode_flops"):
        with pytest.raises(ConfigError, match=f"space.budget: '{cost}' .* model.layers.*computes"):
            resolve({cost: 0.5}, model)
    assert resolve({"params": 0.5}, model)


@pytest.mark.parametrize("name", ["smollm3", "glm4_moe", "llama4_text", "gemma4_text"])
def test_what_is_all_counted_is(name: str) -> None:
    model, counted = costs(name)
    assert model.dense()["flops"] == counted == resolve({"flops": 1.0}, model)["flops"]


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("electra", TEXT_CLASSES),
        ("rembert", TEXT_CLASSES),
        ("albert", EMBEDDINGS),
        ("modernbert", EMBEDDINGS),
        ("dinov2", IMAGE_CLASSES),
        ("clip_vision_model", IMAGE_EMBEDDINGS),
        ("siglip_vision_model", IMAGE_EMBEDDINGS),
    ],
)
def test_what_encoders_compute_outside_their_blocks_is_counted(name: str, task: Task) -> None:
    """Projections of embeddings at each token, heads once a sequence, patches of images."""
    model, counted = costs(name, task)
    assert model.dense()["flops"] == counted

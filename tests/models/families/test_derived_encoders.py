"""Derived families of models that are no causal language models, under all families' contracts."""

from __future__ import annotations

import pytest
from transformers import PreTrainedModel

from evocompress.models.families import Family
from evocompress.models.families.derivation.encoders import DerivedEncoder
from evocompress.models.loading import LoadedModel
from evocompress.models.tasks import (
    EMBEDDINGS,
    IMAGE_CLASSES,
    IMAGE_EMBEDDINGS,
    TEXT_CLASSES,
    Task,
)
from evocompress.testing.derived import typical_config, typical_loaded, typical_model
from evocompress.testing.families import FamilyContract
from evocompress.testing.narrowing import NarrowingContract

VARIED: list[tuple[str, Task]] = [
    ("distilbert", TEXT_CLASSES),
    ("modernbert", EMBEDDINGS),
    ("mpnet", EMBEDDINGS),
    ("electra", TEXT_CLASSES),
    ("esm", EMBEDDINGS),
    ("albert", EMBEDDINGS),
    ("dinov2", IMAGE_CLASSES),
    ("siglip_vision_model", IMAGE_EMBEDDINGS),
]
"""Types that differ in structure, each unlike the others, with a task."""

FURTHER: list[tuple[str, Task]] = [
    ("nomic_bert", EMBEDDINGS),
    ("modernbert", TEXT_CLASSES),
    ("albert", TEXT_CLASSES),
    ("roberta-prelayernorm", EMBEDDINGS),
    ("dinov3_vit", IMAGE_EMBEDDINGS),
    ("clip_vision_model", IMAGE_EMBEDDINGS),
    ("beit", IMAGE_CLASSES),
    ("deberta", EMBEDDINGS),
    ("deberta-v2", EMBEDDINGS),
    ("mlcd_vision_model", IMAGE_EMBEDDINGS),
]
"""More of them, for when there is time."""

TYPES = [*VARIED, *(pytest.param(*one, marks=pytest.mark.long) for one in FURTHER)]


@pytest.mark.parametrize(("name", "task"), TYPES)
class TestDerivedEncoders(FamilyContract):
    @pytest.fixture
    def model(self, name: str, task: Task) -> PreTrainedModel:
        return typical_model(typical_config(name), task=task)

    def test_serves_its_models(self, name: str, family: Family, model: PreTrainedModel) -> None:
        assert isinstance(family, DerivedEncoder)
        assert family.model_type == name


@pytest.mark.parametrize(("name", "task"), TYPES)
class TestDerivedEncoderNarrowing(NarrowingContract):
    @pytest.fixture
    def loaded(self, name: str, task: Task) -> LoadedModel:
        return typical_loaded(typical_config(name), task=task)

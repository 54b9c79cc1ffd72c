"""Derived families under the contracts of all families, on types that differ in structure."""

from __future__ import annotations

import pytest
from transformers import PreTrainedModel

from evocompress.models.families import Family
from evocompress.models.families.derivation.family import Derived
from evocompress.models.loading import LoadedModel
from evocompress.testing.derived import typical_config, typical_loaded, typical_model
from evocompress.testing.families import FamilyContract
from evocompress.testing.narrowing import NarrowingContract

SHARING = "gemma4_text sharing"
"""Later blocks read keys and values of earlier ones."""

VARIED = (
    *("olmo2", "phi", "gpt_neox", "glm4", "lfm2", "gpt_oss", "deepseek_v3", "cohere2"),
    *("gemma3", "zamba", SHARING, f"{SHARING} one head", "gemma4_text with experts"),
)
"""Types that differ in structure, each unlike the others."""

FURTHER = (
    *("granitemoe", "nemotron", "qwen3_next", "falcon", "granite", "smollm3", "stablelm"),
    *("nemotron_h with experts", "dbrx"),
    *("zamba2", "gemma4_text", "nemotron_h", "qwen3_vl", "mistral3", "llava"),
)
"""More of them, for when there is time."""

OF_HEADS = ("laguna", "deepseek_v32")
"""Types whose heads are of interest alone."""

NAMES = [*VARIED, *(pytest.param(name, marks=pytest.mark.long) for name in FURTHER)]


@pytest.mark.parametrize("name", NAMES)
class TestDerivedFamilies(FamilyContract):
    @pytest.fixture
    def model(self, name: str) -> PreTrainedModel:
        return typical_model(typical_config(name))

    def test_serves_its_models(self, name: str, family: Family, model: PreTrainedModel) -> None:
        assert isinstance(family, Derived)
        assert family.model_type == name.split()[0]


@pytest.mark.parametrize("name", [*NAMES, *OF_HEADS])
class TestDerivedNarrowing(NarrowingContract):
    @pytest.fixture
    def loaded(self, name: str) -> LoadedModel:
        return typical_loaded(typical_config(name))

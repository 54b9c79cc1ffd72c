"""Checkpoints of format ``stock`` that lack blocks, of models whose blocks are of several kinds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from export_cases import write
from huggingface_hub.errors import StrictDataclassError

from evocompress.core.errors import ExportError
from evocompress.core.types import DROP, Candidate
from evocompress.export import read_record
from evocompress.models.families import family_of
from evocompress.models.families.base import prepare
from evocompress.models.families.derivation.from_config import language_class
from evocompress.models.families.derivation.shrink import random_model, shrunk
from evocompress.models.loading import LoadedModel, loaded
from evocompress.space.costs import cost_model
from evocompress.testing.derived import typical_config, typical_loaded
from evocompress.testing.formats import assert_written, candidate_of
from evocompress.testing.tiny import tiny_tokenizer

COUNTED = {
    "afmoe": "num_dense_layers",
    "ernie4_5_moe": "moe_layer_start_index and moe_layer_end_index",
    "glm4_moe": "first_k_dense_replace",
}
"""Types whose first blocks have dense MLPs, and the settings that say how many."""

PARALLEL = {"phi": "input_layernorm", "cohere2_moe": "input_layernorm"}
"""Types whose attention and MLP read the same norm, and its path."""


def in_float32(name: str) -> LoadedModel:
    found = typical_loaded(typical_config(name))
    found.model.float()
    found.model.config.dtype = torch.float32
    return found


def counted(model: LoadedModel, out: Path, candidate: Candidate) -> dict[str, float]:
    """By how much each cost that is measured is less than it was predicted."""
    costs = cost_model(model.family.units(model.model), model.family.architecture(model.model))
    predicted, measured = costs.of([candidate]), read_record(out).measured
    return {name: predicted[name].item() - count for name, count in measured.items()}


@pytest.mark.parametrize("gone", ["0", "1"])
@pytest.mark.parametrize("name", COUNTED)
def test_the_first_blocks_stay_dense(name: str, gone: str, tmp_path: Path) -> None:
    model = in_float32(name)
    candidate = candidate_of(model, {gone: DROP})
    out = write(model, candidate, tmp_path / "out", "stock")
    assert_written(out, model, candidate)
    assert not any(counted(model, out, candidate).values())


@pytest.mark.parametrize("name", PARALLEL)
def test_a_norm_of_two_sublayers_is_counted_until_it_is_not_written(
    name: str, tmp_path: Path
) -> None:
    """No cost of a sub-layer alone, it goes with the whole block, where the format has none."""
    model = in_float32(name)
    block = model.family.blocks(model.model)[0]
    norm = sum(p.numel() for p in block.get_submodule(PARALLEL[name]).parameters())
    candidate = candidate_of(model, {"0": DROP})
    for form, less in (("hf", 0), ("stock", norm)):
        found = counted(model, write(model, candidate, tmp_path / form, form), candidate)
        assert found["params"] == found["nonzeros"] == less
        assert found["weight_bytes"] == 4 * less
        assert found["body_params"] == found["matrix_nonzeros"] == 0


def test_a_config_that_transformers_refuses_is_refused_in_one_line(tmp_path: Path) -> None:
    config = shrunk(typical_config("deepseek_v2"), 2)
    with pytest.raises(StrictDataclassError):
        config.validate()
    model = random_model(language_class(config), config)
    prepare(family_of(model), model)
    with pytest.raises(ExportError) as caught:
        write(loaded(model, tiny_tokenizer(), "tiny"), Candidate(), tmp_path / "out", "stock")
    assert str(caught.value).startswith("transformers writes no such DeepseekV2Config: ")
    assert "hidden size" in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()

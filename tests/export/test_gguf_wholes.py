"""Format ``gguf`` of models of several parts: the file is that of the language model within."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_cases import write
from gguf import GGUFReader

from evocompress.core.types import DENSE, DROP, Candidate, Level
from evocompress.export import FORMATS, materialize, read_record
from evocompress.export.gguf_language import language_body, language_tensors
from evocompress.models.families.derivation.defaults import default_config
from evocompress.models.families.derivation.from_config import language_class
from evocompress.models.families.uneven import text_config
from evocompress.models.loading import LoadedModel, load
from evocompress.models.loading import loaded as reload
from evocompress.models.tasks import CAUSAL
from evocompress.testing.formats import candidate_of, in_memory
from evocompress.testing.gguf_reference import GgufReference
from evocompress.testing.gguf_types import (
    WHOLES,
    every_gguf_levels,
    gguf_loaded,
    uneven_gguf_levels,
)
from evocompress.testing.plain_library import PlainLibrary
from evocompress.testing.probes import random_ids
from evocompress.testing.wholes import tiny_whole

OF_CLASSES = [
    name for name in WHOLES if text_config(default_config(name)).model_type in CAUSAL.classes
]
"""Those whose language model has a class of its own."""

SECTIONS = [
    *(("glm4v", [1, 1, 2], [1, 1, 2, 0]), ("paddleocr_vl", [16, 24, 24], [16, 24, 24, 0])),
    *(("qwen2_vl", [4, 2, 2], [4, 2, 2, 0]), ("glm_ocr", [2, 1, 1], [2, 1, 1, 0])),
    *(("qwen3_vl", [3, 3, 2], [3, 3, 2, 0]), ("qwen3_vl", [4, 2, 2], [3, 3, 3, 0])),
]
"""Frequencies that are told to be of each axis, and those that are written; (name, told, written).

Qwen3-VL's axes take turns, and 4, 2 and 2 leave one of the 8 frequencies to none.
"""


class LibraryOfWhole(PlainLibrary):
    """The levels of a model of several parts by the names that units have in its language model."""

    def __init__(self, whole: LoadedModel, alone: LoadedModel) -> None:
        super().__init__(whole)
        self.paths = whole.family.layers_path, alone.family.layers_path

    def load(self, unit: str, level: Level, width: Level = DENSE) -> dict[str, torch.Tensor]:
        whole, alone = self.paths
        return super().load(f"{whole}{unit.removeprefix(alone)}", level, width)


def language_model_alone(whole: LoadedModel) -> LoadedModel:
    """The language model of a model of several parts in its own class."""
    config: Any = copy.deepcopy(language_body(whole.family, whole.model).config)
    config.tie_word_embeddings = whole.model.config.tie_word_embeddings
    model = language_class(config)(config)
    alone = reload(model, whole.tokenizer, whole.source)
    tensors = language_tensors(whole.family, whole.model)
    alone.model.load_state_dict({name: tensor for _, name, tensor in tensors})
    return alone


def content(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    reader = GGUFReader(file)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    return metadata, {tensor.name: tensor.data for tensor in reader.tensors}


@pytest.mark.parametrize("name", OF_CLASSES)
def test_a_file_is_that_of_the_language_model_alone(name: str, tmp_path: Path) -> None:
    whole = gguf_loaded(name)
    alone = language_model_alone(whole)
    library, tried = LibraryOfWhole(whole, alone), every_gguf_levels(whole)
    assert len(tried) > 1
    for case, levels in enumerate(tried):
        out = write(whole, candidate_of(whole, levels), tmp_path / f"whole{case}", "gguf")
        other = tmp_path / f"alone{case}"
        materialize(alone, library, candidate_of(alone, levels), other, format="gguf")
        (said, tensors), (expected, own) = (content(one / "model.gguf") for one in (out, other))
        assert said == expected and tensors.keys() == own.keys()
        assert all(np.array_equal(tensors[key], own[key]) for key in own)


@pytest.mark.parametrize("name", ["gemma3", "mistral3"])
def test_other_parts_are_told_to_be_missing(name: str, tmp_path: Path) -> None:
    whole = gguf_loaded(name)
    out = write(whole, candidate_of(whole, {}), tmp_path / "out", "gguf")
    assert "second file (`mmproj`)" in (out / "README.md").read_text()
    file = GgufReference(out / "model.gguf")
    assert not any("vision" in key or key.startswith(("v.", "mm.")) for key in file.tensors)
    body = language_body(whole.family, whole.model)
    held = sum(p.numel() for p in body.parameters())
    head: Any = whole.model.get_output_embeddings()
    tied = head.weight is whole.model.get_input_embeddings().weight
    assert read_record(out).measured["params"] == held + head.weight.numel() * (not tied)
    alone = gguf_loaded("gemma3_text")
    assert "mmproj" not in FORMATS["gguf"].note(alone, candidate_of(alone, {}))


@pytest.mark.parametrize(("name", "told", "written"), SECTIONS)
def test_frequencies_are_shared_among_axes_as_the_class_does(
    name: str, told: list[int], written: list[int], tmp_path: Path
) -> None:
    whole = gguf_loaded(name)
    parts = language_body(whole.family, whole.model).modules()
    rotary: Any = next(module for module in parts if hasattr(module, "mrope_section"))
    rotary.mrope_section = told
    out = write(whole, candidate_of(whole, {}), tmp_path / "out", "gguf")
    file = GgufReference(out / "model.gguf")
    assert file.metadata[f"{file.architecture}.rope.dimension_sections"] == written


@pytest.mark.parametrize("name", ["mistral3", "lighton_ocr"])
def test_logits_of_text_are_those_of_the_whole(name: str, tmp_path: Path) -> None:
    whole = gguf_loaded(name)
    candidate = candidate_of(whole, uneven_gguf_levels(whole))
    out = write(whole, candidate, tmp_path / "out", "gguf")
    ids = random_ids()
    expected = in_memory(whole, candidate, ids)
    file = GgufReference(out / "model.gguf")
    for row, sequence in enumerate(ids.numpy()):
        np.testing.assert_allclose(file.logits(sequence), expected[row], rtol=0, atol=1e-4)


def obstacle(loaded: LoadedModel, candidate: Candidate, form: str = "gguf") -> str:
    return FORMATS[form].obstacle(loaded, candidate) or ""


def test_what_does_not_go_names_the_model_that_was_given() -> None:
    gemma = tiny_whole("gemma3")
    dropped = candidate_of(gemma, {"1.mlp": DROP})
    assert "cannot leave out model.language_model.layers.1.mlp alone" in obstacle(gemma, dropped)
    gemma = gguf_loaded("gemma3", query_pre_attn_scalar=24)
    assert "this gemma3 model, whose query_pre_attn" in obstacle(gemma, candidate_of(gemma, {}))
    mistral = tiny_whole("mistral3")
    dense = candidate_of(mistral, {})
    assert "cannot hold mistral3 models, only llama" in obstacle(mistral, dense, "deci")


def test_a_compressed_checkpoint_is_called_one(tmp_path: Path) -> None:
    whole = tiny_whole("mistral3")
    candidate = candidate_of(whole, {"1.mlp": DROP})
    again = load(str(write(whole, candidate, tmp_path / "out", "hf")), device="cpu")
    assert "this mistral3 model, a compressed checkpoint" in obstacle(again, Candidate())

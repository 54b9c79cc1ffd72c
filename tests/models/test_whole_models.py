"""Models of several parts from a folder: what is read, checked and told of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from torch import ones

from evocompress.core.errors import ModelError
from evocompress.core.types import DROP
from evocompress.export import materialize
from evocompress.models.checkpoints import quiet_transformers
from evocompress.models.loading import load
from evocompress.models.tasks import WITH_IMAGES
from evocompress.pipeline.offers import offers_of_type
from evocompress.pipeline.planning.outline import outline
from evocompress.testing.formats import candidate_of, reload
from evocompress.testing.probes import assert_equal, random_ids
from evocompress.testing.tiny import tiny_tokenizer
from evocompress.testing.wholes import whole_model

PROCESSORS = ("preprocessor_config.json", "processor_config.json")
WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As such models are published: the names of tensors are those of older versions."""
    found = tmp_path / "whole"
    with quiet_transformers():
        whole_model("gemma3").save_pretrained(found)
        tiny_tokenizer().save_pretrained(found)
    for name in PROCESSORS:
        (found / name).write_text('{"size": 16}\n')
    return found


def test_it_is_read_whole(folder: Path) -> None:
    loaded = load(str(folder), device="cpu")
    assert type(loaded.model).__name__ == "Gemma3ForConditionalGeneration"
    assert loaded.family.task is WITH_IMAGES
    assert loaded.family.layers_path == "model.language_model.layers"
    ids = random_ids()
    assert_equal(loaded.model(ids).logits, whole_model("gemma3")(ids).logits)


def test_it_is_planned_by_its_config_alone(folder: Path) -> None:
    loaded = load(str(folder), device="cpu")
    (folder / WEIGHTS).unlink()
    planned = outline(str(folder))
    family, model = loaded.family, loaded.model
    assert planned.family.architecture(planned.model) == family.architecture(model)
    assert [*planned.family.units(planned.model)] == [*family.units(model)]


@pytest.mark.parametrize("lost", [True, False])
def test_every_weight_of_other_parts_is_needed(folder: Path, *, lost: bool) -> None:
    tensors = load_file(folder / WEIGHTS)
    name = next(name for name in tensors if "vision" in name and name.endswith("q_proj.weight"))
    if lost:
        del tensors[name]
    else:
        tensors[name.replace("q_proj", "r_proj")] = ones(1)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="lacks 1 of the weights" if lost else "holds .*r_proj"):
        load(str(folder), device="cpu")


def test_sizes_of_every_part_are_checked_first(folder: Path) -> None:
    settings = json.loads((folder / "config.json").read_text())
    settings["vision_config"]["hidden_size"] = 10**9
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="vision_config: hidden_size is 1000000000, but must be"):
        load(str(folder), device="cpu")


def test_processors_are_copied_into_checkpoints(folder: Path, tmp_path: Path) -> None:
    loaded = load(str(folder), device="cpu")
    candidate = candidate_of(loaded, {"0.attention": DROP})
    out = materialize(loaded, None, candidate, tmp_path / "out")
    for name in PROCESSORS:
        assert (out / name).read_bytes() == (folder / name).read_bytes()
    assert "AutoModelForImageTextToText.from_pretrained" in (out / "README.md").read_text()


def test_the_head_is_told_of_in_both_configs(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    embedding = next(name for name in tensors if name.endswith("embed_tokens.weight"))
    head = f"{embedding.partition('language_model')[0]}lm_head.weight"
    save_file(tensors | {head: ones(256, 64)}, folder / WEIGHTS, metadata={"format": "pt"})
    loaded = load(str(folder), device="cpu")
    config = loaded.model.config
    assert config.tie_word_embeddings is config.text_config.tie_word_embeddings is False
    out = materialize(loaded, None, candidate_of(loaded, {"0": DROP}), folder / "out")
    assert not reload(out, WITH_IMAGES).config.tie_word_embeddings
    assert_equal(reload(out, WITH_IMAGES).get_output_embeddings().weight, ones(256, 64))


def test_what_is_offered_of_such_a_type() -> None:
    found = offers_of_type("gemma3")
    assert (found.layout, found.cls) == ("derived", "Gemma3ForConditionalGeneration")
    assert found.actions["heads"] == found.actions["block"] == found.blocks == 26
    assert {"stock", "hf"} <= {*found.holding}

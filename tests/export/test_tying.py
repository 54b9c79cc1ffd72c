"""A head of its own under a config that says tied, and one that is the embedding under another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from export_cases import write
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiers import by_tier

from evocompress.core.types import Level
from evocompress.export import FORMATS, read_record
from evocompress.models.loading import LoadedModel, load
from evocompress.models.loading import loaded as ready
from evocompress.space.costs import cost_model
from evocompress.testing.formats import assert_written, candidate_of, with_zeros
from evocompress.testing.tiny import DECODERS, tiny_checkpoint, tiny_model, windowless

OTHER_PROGRAMS = ("deci", "gguf")


def own_head(model: torch.nn.Module) -> torch.nn.Module:
    """The model with another head than its embedding, of which its config knows nothing."""
    head = model.get_output_embeddings()
    noise = torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(3))
    head.weight = torch.nn.Parameter(0.1 * noise, requires_grad=False)
    model.config.tie_word_embeddings = True
    return model


def with_own_head(name: str, folder: Path) -> Path:
    """A checkpoint with a head of its own whose config says tied, as merged adapters leave them."""
    tiny_checkpoint(folder, name)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    embedding = tiny_model(name).get_input_embeddings().weight
    noise = torch.randn(embedding.shape, generator=torch.Generator().manual_seed(3))
    save_file(tensors | {"lm_head.weight": 0.1 * noise}, file, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    return folder


def sparse(loaded: LoadedModel) -> dict[str, Level]:
    return with_zeros(
        loaded, {"1.mlp": Level(channels=96)} if loaded.family.mixture is None else {}
    )


@pytest.mark.parametrize("name", by_tier(DECODERS))
def test_a_head_of_its_own_is_written_in_every_format(name: str, tmp_path: Path) -> None:
    loaded = load(str(with_own_head(name, tmp_path / "dense")), dtype="float32", device="cpu")
    candidate = candidate_of(loaded, sparse(loaded))
    able = [form for form in FORMATS.built_in if FORMATS[form].obstacle(loaded, candidate) is None]
    assert "hf" in able
    for form in able:
        assert_own_head(write(loaded, candidate, tmp_path / form, form), loaded)
        assert_written(tmp_path / form, loaded, candidate)


@pytest.mark.parametrize("form", OTHER_PROGRAMS)
def test_a_head_of_its_own_is_written_for_other_programs(form: str, tmp_path: Path) -> None:
    dense = windowless("llama", layers=2)
    loaded = ready(own_head(dense.model), dense.tokenizer, dense.source)
    candidate = candidate_of(loaded, {"1.mlp": Level(channels=96)})
    assert_written(write(loaded, candidate, tmp_path / "out", form), loaded, candidate)


def assert_own_head(out: Path, loaded: LoadedModel) -> None:
    """The head is stored and counted, and the config says that it is not the embedding."""
    if not (out / "config.json").exists():
        return
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    with safe_open(out / "model.safetensors", framework="pt") as file:
        assert torch.equal(
            file.get_tensor("lm_head.weight"), loaded.model.get_output_embeddings().weight
        )


@pytest.mark.parametrize("name", by_tier(DECODERS))
def test_a_head_that_was_replaced_in_memory_counts(name: str, tmp_path: Path) -> None:
    tied = own_head(tiny_model(name))
    tied.get_output_embeddings().weight = tied.get_input_embeddings().weight
    ours, theirs = ready(tied, None, name), ready(own_head(tiny_model(name)), None, name)
    assert ours.model.config.tie_word_embeddings and not theirs.model.config.tie_word_embeddings
    head = theirs.model.get_output_embeddings().weight.numel()
    assert params(theirs) - params(ours) == head
    out = write(theirs, candidate_of(theirs, {}), tmp_path / "out", "hf")
    assert read_record(out).measured["params"] == params(theirs)
    assert_written(out, theirs, candidate_of(theirs, {}))


def params(loaded: LoadedModel) -> int:
    units, architecture = loaded.family.units(loaded.model), loaded.family.architecture
    costs = cost_model(units, architecture(loaded.model)).of([candidate_of(loaded, {})])
    return costs["params"].item()


def test_an_equal_head_is_tied_where_the_config_says_so() -> None:
    model = tiny_model("llama")
    weight = model.get_input_embeddings().weight
    model.get_output_embeddings().weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
    model = ready(model, None, "llama").model
    assert model.get_output_embeddings().weight is weight


def test_a_head_that_is_the_embedding_is_called_tied(tmp_path: Path) -> None:
    model = tiny_model("mistral")
    assert not model.config.tie_word_embeddings
    model.get_output_embeddings().weight = model.get_input_embeddings().weight
    loaded = ready(model, None, "mistral")
    assert loaded.family.architecture(model).tied and model.config.tie_word_embeddings
    out = write(loaded, candidate_of(loaded, {}), tmp_path / "out", "stock")
    assert "lm_head.weight" not in load_file(out / "model.safetensors")
    assert_written(out, loaded, candidate_of(loaded, {}))

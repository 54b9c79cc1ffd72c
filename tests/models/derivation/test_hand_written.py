"""What is derived is what one would write by hand for the same type."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from evocompress.core.architecture import Architecture
from evocompress.core.types import Candidate
from evocompress.core.widths import Widths
from evocompress.export import materialize, read_record
from evocompress.export.reload import read_checkpoint
from evocompress.models.families import FAMILIES, Family, Matrix, SubLayer, SubLayerName, family_of
from evocompress.models.families.base import matrices_of
from evocompress.models.families.branches import Attributes
from evocompress.models.families.derivation.derived import derive
from evocompress.models.families.encoder import embedding
from evocompress.models.loading import LoadedModel, loaded
from evocompress.models.tasks import EMBEDDINGS, IMAGE_CLASSES
from evocompress.testing.formats import candidate_of, uneven, with_zeros
from evocompress.testing.plain_library import PlainLibrary
from evocompress.testing.probes import answer, assert_equal, random_batch, replace_modules
from evocompress.testing.tiny import tiny_model, tiny_tokenizer


class Llama(Family):
    """What `Family` describes."""

    model_type = "llama"


class Encoder(Family):
    """Every token sees all others; heads follow from the matrices."""

    norm_path = ""
    two_way = True

    def narrowing(self, block: nn.Module, sublayer: SubLayerName, widths: Widths) -> Attributes:
        return {}


class Bert(Encoder):
    """Norms after the sums, which go with the sub-layers."""

    model_type = "bert"
    task = EMBEDDINGS
    layers_path = "encoder.layer"
    attention = SubLayer(
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
    mlp = SubLayer(
        matrices=(
            Matrix("intermediate.dense", "mlp", "mlp_in", rows=("channel",)),
            Matrix("output.dense", "mlp", "mlp_out", columns=("channel",)),
        ),
        identity_modules=("intermediate.dense", "intermediate.intermediate_act_fn")
        + ("output.LayerNorm",),
        zero_module="output.dense",
        norm_after="output.LayerNorm",
    )

    def outputs(self, model: PreTrainedModel, hidden: Tensor) -> Tensor:
        return embedding(hidden, self.task.pooling)

    def _outer_flops(self, model: PreTrainedModel) -> int:
        return 2 * model.get_parameter("pooler.dense.weight").numel()


class ViT(Encoder):
    """Patches of an image behind a class token, which the classifier reads."""

    model_type = "vit"
    task = IMAGE_CLASSES
    layers_path = "vit.layers"
    norm_path = "vit.layernorm"
    attention = SubLayer(
        matrices=(
            Matrix("attention.q_proj", "attention", "attention_in", rows=("query",)),
            Matrix("attention.k_proj", "attention", "attention_in", rows=("key",)),
            Matrix("attention.v_proj", "attention", "attention_in", rows=("value",)),
            Matrix("attention.o_proj", "attention", "attention_out", columns=("query",)),
        ),
        identity_modules=("layernorm_before",),
        zero_module="attention",
    )
    mlp = SubLayer(
        matrices=(
            Matrix("mlp.fc1", "mlp", "mlp_in", rows=("channel",)),
            Matrix("mlp.fc2", "mlp", "mlp_out", columns=("channel",)),
        ),
        identity_modules=("layernorm_after",),
        zero_module="mlp",
    )

    def architecture(self, model: PreTrainedModel) -> Architecture:
        return replace(super().architecture(model), tokens=self._context(model))

    def outputs(self, model: PreTrainedModel, hidden: Tensor) -> Tensor:
        return model.get_submodule("classifier")(hidden[:, 0])

    def _context(self, model: PreTrainedModel) -> int:
        return 1 + (model.config.image_size // model.config.patch_size) ** 2

    def _outer_flops(self, model: PreTrainedModel) -> int:
        patch = "vit.embeddings.patch_embeddings.projection.weight"
        patches = model.get_parameter(patch).numel() * (self._context(model) - 1)
        return 2 * (patches + model.get_parameter("classifier.weight").numel())


WRITTEN: dict[str, Family] = {"llama": Llama(), "bert": Bert(), "vit": ViT()}
"""A decoder and encoders with norms before and after the sums."""


def matrices(family: Family) -> list[Matrix]:
    """The matrices of a kind of block, with numbers for the words of what they read."""
    found = matrices_of(family)
    words = list(dict.fromkeys(matrix.input for matrix in found))
    return [replace(matrix, input=str(words.index(matrix.input))) for matrix in found]


@pytest.mark.parametrize("name", WRITTEN)
@torch.no_grad()
def test_units_costs_and_values_are_the_same(name: str) -> None:
    model, written = tiny_model(name), WRITTEN[name]
    found = derive(type(model), model.config)
    assert not found.limits
    assert found.task == written.task
    assert list(found.units(model)) == list(written.units(model))
    assert found.architecture(model) == written.architecture(model)
    assert found.norm_path == written.norm_path
    assert matrices(found) == matrices(written)
    batch = random_batch(written, model)
    states = written.hidden_states(model, batch)
    assert_equal(found.hidden_states(model, batch), states)
    assert_equal(found.outputs(model, states), written.outputs(model, states))
    for sublayer in written.sublayers:
        lacking = [copy.deepcopy(model) for _ in range(2)]
        for one, family in zip(lacking, (written, found), strict=True):
            block = family.blocks(one)[1]
            replace_modules(block, family.replacements(block, sublayer))
        assert_equal(*(answer(written, one, batch) for one in lacking))


@pytest.mark.parametrize("name", WRITTEN)
@torch.no_grad()
def test_checkpoints_are_the_same(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is written by hand takes the place of the derived one."""

    def ready() -> LoadedModel:
        tokenizer = tiny_tokenizer() if WRITTEN[name].task.reads_text else None
        return loaded(tiny_model(name, layers=4), tokenizer, f"tiny:{name}")

    def wrote(model: LoadedModel, candidate: Candidate, folder: str) -> Path:
        return materialize(model, PlainLibrary(model), candidate, tmp_path / folder, format="hf")

    derived = ready()
    monkeypatch.setitem(FAMILIES, name, WRITTEN[name])
    written = ready()
    assert family_of(written.model) is written.family is WRITTEN[name]
    assert type(derived.family) is not type(written.family)
    candidate = candidate_of(written, with_zeros(written, uneven(written)))
    folders = wrote(derived, candidate, "derived"), wrote(written, candidate, "written")
    records = [read_record(folder) for folder in folders]
    assert records[0].measured == records[1].measured
    tensors = [load_file(folder / "model.safetensors") for folder in folders]
    assert tensors[0].keys() == tensors[1].keys()
    for key, tensor in tensors[0].items():
        assert torch.equal(tensor, tensors[1][key]), key
    batch = random_batch(written.family, written.model)
    one, other = (
        answer(written.family, read_checkpoint(folder, model.model), batch)
        for folder, model in zip(folders, (derived, written), strict=True)
    )
    assert torch.equal(one, other)

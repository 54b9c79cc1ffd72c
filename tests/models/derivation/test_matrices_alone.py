"""Models of which only the matrices are known: what these are, and what the model computes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import (
    BartConfig,
    BartForCausalLM,
    MobileBertConfig,
    MobileBertForSequenceClassification,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    SwinConfig,
    SwinForImageClassification,
    SwinModel,
    T5Config,
    T5Model,
)

from evocompress.compression.library import build_library
from evocompress.compression.live_model import LiveModel
from evocompress.core.config import LibraryConfig
from evocompress.core.errors import ExportError, ModelError
from evocompress.core.types import DENSE, DROP, Candidate, Level
from evocompress.export import choose_format
from evocompress.models.families import family_of
from evocompress.models.families.outer import every_unit
from evocompress.models.loading import loaded as made_ready
from evocompress.pipeline.offers.offers import offers

SWIN = SwinConfig(
    image_size=64, embed_dim=32, depths=[1, 1], num_heads=[2, 4], window_size=4, num_labels=10
)
SIZES = {"layers": 2, "attention_heads": 4, "ffn_dim": 128}
BART = BartConfig(
    vocab_size=256,
    d_model=64,
    is_decoder=True,
    is_encoder_decoder=False,
    **{f"{part}_{name}": size for part in ("encoder", "decoder") for name, size in SIZES.items()},
)
BERT = MobileBertConfig(
    vocab_size=256,
    hidden_size=64,
    num_hidden_layers=2,
    intermediate_size=64,
    embedding_size=32,
    intra_bottleneck_size=32,
    true_hidden_size=32,
    num_labels=3,
)

MODELS = {
    "an image classifier in stages": (SwinForImageClassification, SWIN),
    "embeddings of images": (SwinModel, SWIN),
    "a decoder of an encoder-decoder": (BartForCausalLM, BART),
    "matrices that store (in, out)": (
        OpenAIGPTLMHeadModel,
        OpenAIGPTConfig(vocab_size=256, n_embd=64, n_layer=2, n_head=4),
    ),
    "an encoder of texts": (MobileBertForSequenceClassification, BERT),
}


@pytest.fixture(params=MODELS)
def loaded(request):
    cls, config = MODELS[request.param]
    torch.manual_seed(0)
    return made_ready(cls(config), None, "random")


def batch_of(loaded, count=4):
    generator = torch.Generator().manual_seed(1)
    if loaded.family.task.reads_text:
        return torch.randint(3, 250, (count, 32), generator=generator)
    return torch.rand(count, 3, 64, 64, generator=generator)


def compared(loaded, model, batch):
    output = loaded.family.task.run(model, batch)
    if loaded.family.task.compared == "embeddings":
        return nn.functional.normalize(output.pooler_output, dim=-1)
    return output.logits


@torch.no_grad()
def test_the_only_block_computes_what_the_model_does(loaded):
    family, model, batch = loaded.family, loaded.model, batch_of(loaded)
    state, arguments = family.block_inputs(model, batch)
    (block,) = family.blocks(model)
    expected = compared(loaded, model, batch)
    assert torch.equal(block(state, **arguments[0]), expected)
    assert torch.equal(family.outputs(model, family.hidden_states(model, batch)), expected)


@torch.no_grad()
def test_matrices_are_the_linear_modules_that_are_run(loaded):
    """Those of the body that change what it makes; matrices of one word read equal values."""
    model, batch, found = loaded.model, batch_of(loaded, 2), {}
    handles = [
        module.register_forward_pre_hook(
            lambda _, given, name=name: found.setdefault(name, given[0])
        )
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    ]
    compared(loaded, model, batch)
    for handle in handles:
        handle.remove()
    path = loaded.family.layers_path
    rows = batch.numel() if loaded.family.task.reads_text else None
    within = {
        name
        for name, given in found.items()
        if name.startswith(f"{path}.") and rows in (None, given.shape[:-1].numel())
    }
    units = [unit for unit in loaded.family.units(model) if unit.kind == "matrix"]
    assert {unit.name for unit in units} == within and len(within) > 5
    words = {}
    for matrix in loaded.family.matrices:
        given = found[f"{path}.{matrix.path}"]
        assert torch.equal(words.setdefault(matrix.input, given), given)
    fused = any(name.endswith("c_attn") for name in within)  # queries, keys and values
    assert len(words) == len(units) if fused else len(words) < len(units)


@torch.no_grad()
def test_a_candidate_computes_what_its_weights_do(loaded, tmp_path):
    model, batch = loaded.model, batch_of(loaded)
    names = [unit.name for unit in loaded.family.units(model) if unit.kind == "matrix"]
    kinds = [Level(bits="w4g32"), Level(bits="q8_0"), Level(zeros=100)]
    for kind in kinds:
        wanted = {name: [DENSE, kind] for name in names}
        library = build_library(
            *(loaded, wanted, batch_of(loaded, 8), "text", LibraryConfig()),
            tmp_path / kind.key,
            batch=4,
        )
        candidate = Candidate(tuple(sorted(dict.fromkeys(names, kind).items())))
        other = copy.deepcopy(model)
        for name in names:
            weight = library.load(name, kind)["weight"]
            other.get_submodule(name).weight.copy_(weight)
        expected = compared(loaded, other, batch)
        before = compared(loaded, model, batch)
        with LiveModel(loaded, library) as live:
            live.apply(candidate)
            found = compared(loaded, model, batch)
            hidden = loaded.family.hidden_states(model, batch)
            torch.testing.assert_close(loaded.family.outputs(model, hidden), found)
        torch.testing.assert_close(found, expected)
        assert not torch.equal(found, before)
        assert torch.equal(compared(loaded, model, batch), before)
        assert choose_format(loaded, candidate) == "stock"


def test_nothing_can_be_left_out_or_cut(loaded):
    assert all(u.kind != "outer" for u in every_unit(loaded.family, loaded.model))
    units = loaded.family.units(loaded.model)
    assert not any(unit.droppable for unit in units if unit.kind != "matrix")
    assert not any(unit.narrowable for unit in units if unit.kind == "mlp")
    found = offers(loaded)
    assert {name for name, count in found.actions.items() if count} == {"zeros", "bits"}
    assert found.layout == "matrices" and found.holding == ["stock"]
    assert found.reasons[0].startswith("nothing but types of weights and zeros: models of type")
    name = next(unit.name for unit in units if unit.kind == "mlp")
    with pytest.raises(ExportError, match="cannot cut .*, because the blocks of this model are"):
        choose_format(loaded, Candidate(((name, DROP),)), "stock")


def test_encoders_with_a_decoder_are_refused_as_before():
    config = T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    with torch.device("meta"):
        model = T5Model(config)
    with pytest.raises(ModelError, match="encoder with a decoder, whose blocks.*another text"):
        family_of(model)

"""GGUF files whose tensors have types of their own, against the candidate in memory."""

import gguf
import numpy as np
import pytest
import torch

from evocompress.compression.library import build_library
from evocompress.compression.live_model import LiveModel
from evocompress.core.config import LibraryConfig
from evocompress.core.errors import ExportError
from evocompress.core.types import DENSE, DROP, Candidate, Level
from evocompress.export import materialize
from evocompress.models.loading import load
from evocompress.testing.gguf_reference import GgufReference
from evocompress.testing.tiny import tiny_checkpoint

TYPES = ("q4_0", "q8_0", "q5_1")
NARROW = Level(channels=64)


def matrices(loaded):
    return [unit for unit in loaded.family.units(loaded.model) if unit.kind == "matrix"]


def tied(folder, model_type):
    """A model whose head is its embedding."""
    loaded = load(str(tiny_checkpoint(folder / "untied", model_type)))
    loaded.model.config.tie_word_embeddings = True
    loaded.model.tie_weights()
    for part in (loaded.model, loaded.tokenizer):
        part.save_pretrained(folder / "model")
    return load(str(folder / "model"))


def made(folder, model_type, levels, dropped=()):
    """A model, a library of its matrices at all types, and a candidate with these levels."""
    loaded = tied(folder, model_type)
    mlps = [u.name for u in loaded.family.units(loaded.model) if u.kind == "mlp"]
    wanted = {unit.name: [DENSE, *(Level(bits=t) for t in TYPES)] for unit in matrices(loaded)}
    wanted |= dict.fromkeys(mlps, [DENSE, NARROW])
    tokens = torch.randint(1, 250, (8, 32), generator=torch.Generator().manual_seed(0))
    config, path = LibraryConfig(width_criterion="magnitude"), folder / "library"
    library = build_library(loaded, wanted, tokens, "tokens", config, path, batch=4)
    gone = {name: DROP for name in dropped}
    below = tuple(f"{name}." for name in dropped)
    chosen = {n: lv for n, lv in levels(loaded).items() if not f"{n}.".startswith(below or ("-",))}
    return loaded, library, Candidate(tuple(sorted((chosen | gone).items())))


def every_type(loaded):
    return {u.name: Level(bits=TYPES[i % 3]) for i, u in enumerate(matrices(loaded))}


def by_layer(loaded):
    """One type in all matrices of a layer, as files need that have some of them as one tensor."""
    return {u.name: Level(bits=TYPES[u.block % 3]) for u in matrices(loaded)}


def narrowed(loaded):
    return every_type(loaded) | {"model.layers.1.mlp": NARROW}


def partly(loaded):
    return {u.name: Level(bits="q4_0") for u in matrices(loaded) if u.role.endswith("down_proj")}


def assert_as_in_memory(loaded, library, candidate, file):
    ids = torch.arange(1, 30)
    with LiveModel(loaded, library) as live, torch.no_grad():
        live.apply(candidate)
        expected = loaded.model(ids[None]).logits[0].double().numpy()
    found = GgufReference(file).logits(ids.numpy())
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def types_in(file):
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors}


@pytest.mark.parametrize("levels", [every_type, narrowed, partly], ids=lambda f: f.__name__)
@pytest.mark.parametrize("dropped", [(), ("model.layers.1.attention",)], ids=["whole", "dropped"])
def test_each_tensor_has_its_type(levels, dropped, tmp_path):
    loaded, library, candidate = made(tmp_path, "llama", levels, dropped)
    out = materialize(loaded, library, candidate, tmp_path / "out", format="gguf")
    assert_as_in_memory(loaded, library, candidate, out / "model.gguf")
    found = types_in(out / "model.gguf")
    assert (
        found["blk.2.ffn_down.weight"]
        == candidate.by_name["model.layers.2.mlp.down_proj"].bits.upper()
    )
    assert found["token_embd.weight"] == "F32"


def test_matrices_that_are_one_tensor_have_one_type(tmp_path):
    loaded, library, candidate = made(tmp_path, "qwen3", narrowed)
    with pytest.raises(ExportError, match=r"attn_qkv.weight would be of types .* one type there"):
        materialize(loaded, library, candidate, tmp_path / "out", format="gguf")
    assert not (tmp_path / "out").exists()


def test_rows_of_one_tensor_come_from_several_matrices(tmp_path):
    def levels(loaded):
        return by_layer(loaded) | {"model.layers.1.mlp": NARROW}

    loaded, library, candidate = made(tmp_path, "qwen3", levels)
    out = materialize(loaded, library, candidate, tmp_path / "out", format="gguf")
    assert_as_in_memory(loaded, library, candidate, out / "model.gguf")


def test_healed_weights_are_rounded_to_the_same_types(tmp_path):
    loaded, library, candidate = made(tmp_path, "llama", every_type)
    first = materialize(loaded, library, candidate, tmp_path / "stock", format="stock")
    out = materialize(loaded, None, candidate, tmp_path / "out", format="gguf", healed=first)
    plain = materialize(loaded, library, candidate, tmp_path / "plain", format="gguf")
    assert types_in(out / "model.gguf") == types_in(plain / "model.gguf")
    assert_as_in_memory(loaded, library, candidate, plain / "model.gguf")


def test_other_formats_hold_the_rounded_weights(tmp_path):
    from transformers import AutoModelForCausalLM

    loaded, library, candidate = made(tmp_path, "llama", every_type)
    out = materialize(loaded, library, candidate, tmp_path / "out", format="stock")
    model = AutoModelForCausalLM.from_pretrained(out)
    ids = torch.arange(1, 30)[None]
    with LiveModel(loaded, library) as live, torch.no_grad():
        live.apply(candidate)
        assert torch.equal(model(ids).logits, loaded.model(ids).logits)

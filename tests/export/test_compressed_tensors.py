"""Format ``compressed-tensors``: words and scales in the place of weights."""

import json

import pytest
import torch
from safetensors.torch import load_file

from evocompress.compression.library import build_library
from evocompress.core.config import LibraryConfig
from evocompress.core.errors import ExportError
from evocompress.core.types import DENSE, DROP, Candidate, Level
from evocompress.export import materialize
from evocompress.export.formats import obstacle_of, type_rules_of
from evocompress.models.loading import load
from evocompress.testing.tiny import tiny_checkpoint, tiny_loaded

TYPES = ("w4g32", "w3g32", "w8g64", "w4g32z")
MLP = "model.layers.1.mlp"
NARROW = Level(channels=64)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    loaded = load(str(tiny_checkpoint(folder / "model", "llama")))
    matrices = [u.name for u in loaded.family.units(loaded.model) if u.kind == "matrix"]
    wanted = {name: [DENSE, *(Level(bits=kind) for kind in TYPES)] for name in matrices}
    wanted[MLP] = [DENSE, NARROW]
    tokens = torch.randint(1, 250, (8, 32), generator=torch.Generator().manual_seed(0))
    config = LibraryConfig(width_criterion="magnitude")
    library = build_library(loaded, wanted, tokens, "tokens", config, folder / "library", batch=4)
    levels = {name: Level(bits=TYPES[i % 3]) for i, name in enumerate(matrices)}
    return loaded, library, levels


def candidate_of(levels):
    below = tuple(f"{name}." for name, level in levels.items() if level.drop) or ("-",)
    kept = {name: lv for name, lv in levels.items() if not f"{name}.".startswith(below)}
    return Candidate(tuple(sorted(kept.items())))


def unpacked(words, bits, count):
    """Bit by bit: one after the other, the first in the lowest bits."""
    rows = []
    for row in words.tolist():
        whole = sum((word & 0xFFFFFFFF) << (32 * place) for place, word in enumerate(row))
        rows.append([(whole >> (place * bits)) & (2**bits - 1) for place in range(count)])
    return torch.tensor(rows)


def read_back(folder):
    """The weights of a checkpoint, as the schemes of its config say."""
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "compressed-tensors"
    schemes = {
        target: group["weights"]
        for group in config["config_groups"].values()
        for target in group["targets"]
    }
    tensors = load_file(folder / "model.safetensors")
    found = {}
    for name, scheme in schemes.items():
        assert f"{name}.weight" not in tensors and scheme["symmetric"]
        rows, columns = tensors[f"{name}.weight_shape"].tolist()
        scale, bits = tensors[f"{name}.weight_scale"].float(), scheme["num_bits"]
        assert scale.shape == (rows, columns // scheme["group_size"])
        codes = unpacked(tensors[f"{name}.weight_packed"], bits, columns) - 2 ** (bits - 1)
        found[f"{name}.weight"] = codes * scale.repeat_interleave(scheme["group_size"], 1)
    return found, tensors


@pytest.mark.parametrize("changes", [{}, {MLP: NARROW, "model.layers.2.attention": DROP}], ids=len)
def test_words_are_read_back_as_the_rounded_weights(made, changes, tmp_path):
    loaded, library, levels = made
    candidate = candidate_of(levels | changes)
    out = materialize(loaded, library, candidate, tmp_path / "out", format="compressed-tensors")
    rounded = "hf" if changes else "stock"
    plain = materialize(loaded, library, candidate, tmp_path / "plain", format=rounded)
    found, tensors = read_back(out)
    expected = load_file(plain / "model.safetensors")
    assert len(found) == sum(1 for _, level in candidate.levels if level.bits)
    for name, weight in found.items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-3, atol=1e-6)
    rest = {name: tensor for name, tensor in expected.items() if name not in found}
    assert rest and all(torch.equal(tensors[name], tensor) for name, tensor in rest.items())


def test_refused_by_name(made, tmp_path):
    loaded, library, levels = made
    name = next(iter(levels))
    cases = {
        "has no zero points, as w4g32z of": levels | {name: Level(bits="w4g32z")},
        "has llama.cpp's type q8_0": levels | {name: Level(bits="q8_0")},
    }
    for message, changed in cases.items():
        with pytest.raises(ExportError, match=message):
            out = tmp_path / "out"
            materialize(loaded, library, candidate_of(changed), out, format="compressed-tensors")
    assert not (tmp_path / "out").exists()


def test_transformers_generates_the_same(made, tmp_path):
    pytest.importorskip("compressed_tensors")
    from transformers import AutoModelForCausalLM

    loaded, library, levels = made
    candidate = candidate_of(levels | {MLP: NARROW, "model.layers.2.attention": DROP})
    ids = torch.arange(1, 30)[None]
    logits = []
    for form in ("hf", "compressed-tensors"):
        out = materialize(loaded, library, candidate, tmp_path / form, format=form)
        model = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
        logits.append(model(ids).logits)
    torch.testing.assert_close(*logits, rtol=1e-3, atol=1e-4)


def test_experts_are_refused_by_name():
    loaded = tiny_loaded("qwen2_moe")
    name = "model.layers.1.mlp.experts.2.up_proj"
    candidate = Candidate(((name, Level(bits="w4g32")),))
    obstacle = obstacle_of("compressed-tensors", loaded, candidate)
    assert obstacle is not None and "is of an expert: transformers has one tensor" in obstacle
    rules = type_rules_of("compressed-tensors", loaded, uneven=False)
    assert name in rules.untyped and "model.layers.1.self_attn.q_proj" not in rules.untyped

"""PackedRows of llama.cpp's types against gguf-py, which reads them."""

import sys

import gguf
import pytest
import torch

from evocompress.compression.quantization import ggml
from evocompress.compression.quantization.gptq import RoundingTask, round_to_nearest
from evocompress.core.errors import ConfigError, LibraryError
from evocompress.core.storage import GGUF, STORAGE

TYPES = [one for one in STORAGE.values() if one.lane == GGUF]
UNIFORM = [one.name for one in TYPES if one.uniform]


def weights(rows=7, columns=512):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_blocks_are_as_large_as_gguf_says(kind):
    number = gguf.GGMLQuantizationType[kind.name.upper()]
    assert (kind.block, kind.block_bytes) == gguf.GGML_QUANT_SIZES[number]


@pytest.mark.parametrize("name", UNIFORM)
def test_packed_codes_are_read_back_exactly(name):
    kind, weight = STORAGE[name], weights()
    rounded = round_to_nearest(RoundingTask(weight, kind), torch.float16)
    stored = ggml.pack_blocks(rounded, kind)
    assert stored.shape == (7, kind.bytes(1, 512))
    assert torch.equal(ggml.dequantized(stored, kind), rounded.weight)
    # As near as gguf-py's own.
    own = gguf.quantize(weight.numpy(), gguf.GGMLQuantizationType[name.upper()])
    theirs = (ggml.dequantized(torch.from_numpy(own), kind) - weight).square().mean()
    assert (rounded.weight - weight).square().mean() <= 1.02 * theirs


@pytest.mark.parametrize("name", sorted(ggml.PLAIN))
def test_without_ggml_the_types_are_those_of_gguf(name, monkeypatch):
    monkeypatch.setattr(ggml, "_ggml", lambda: None)
    kind, weight = STORAGE[name], weights()
    stored = ggml.quantized(weight, kind)
    assert stored.nbytes == kind.bytes(*weight.shape)
    error = (ggml.dequantized(stored, kind) - weight).square().mean() / weight.square().mean()
    assert float(error) < 0.02


def test_without_ggml_other_types_are_refused_by_name(monkeypatch):
    monkeypatch.setattr(ggml, "_ggml", lambda: None)
    with pytest.raises(LibraryError, match="q4_k is made by ggml, which is not installed"):
        ggml.quantized(weights(), STORAGE["q4_k"])


def test_an_unknown_type_is_refused_with_those_there_are():
    from evocompress.core.storage import storage_type

    with pytest.raises(ConfigError, match="no type of weights 'q4': choose among f16, bf16, q4_0"):
        storage_type("q4")


@pytest.mark.skipif(not ggml.makes_all_types(), reason="llama-cpp-python is not installed")
@pytest.mark.parametrize("name", ["iq2_xxs", "iq1_s", "q2_k"])
def test_ggml_makes_types_that_need_importances_without_any(name):
    weight = weights()
    found = ggml.dequantized(ggml.quantized(weight, STORAGE[name]), STORAGE[name])
    assert float((found - weight).square().mean()) < 0.6


@pytest.mark.skipif(not ggml.makes_all_types(), reason="llama-cpp-python is not installed")
@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_ggml_makes_all_types(kind):
    weight = weights()
    importance = torch.rand(512, generator=torch.Generator().manual_seed(1)) ** 4 + 1e-3
    stored = ggml.quantized(weight, kind, importance)
    assert stored.nbytes == kind.bytes(*weight.shape)
    change = ggml.dequantized(stored, kind) - weight
    assert float((change.square() * importance).sum()) < float((weight.square() * importance).sum())


@pytest.mark.skipif(not ggml.makes_all_types(), reason="llama-cpp-python is not installed")
@pytest.mark.parametrize("name", ["q4_k", "iq2_xxs", "iq4_nl", "q4_0"])
@pytest.mark.parametrize("dead", [100, 512])
def test_inputs_that_are_always_zero_are_stored_as_well(name, dead):
    weight, importance = weights(), torch.ones(512)
    importance[:dead] = 0
    found = ggml.dequantized(ggml.quantized(weight, STORAGE[name], importance), STORAGE[name])
    assert found.isfinite().all()


def test_without_gguf_one_line_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(LibraryError, match=r"pip install 'evocompress\[gguf\]'"):
        ggml.quantized(weights(), STORAGE["f16"])

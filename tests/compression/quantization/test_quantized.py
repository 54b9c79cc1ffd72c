"""The tensors of a stored matrix against what reads them."""

import pytest
import torch

from evocompress.compression.criteria import Statistics
from evocompress.compression.quantization import ggml
from evocompress.compression.quantization.gptq import Rounded, RoundingTask
from evocompress.compression.quantization.quantized import (
    QuantizedMatrix,
    in_words,
    needs_of,
    part_specs,
    quantize_all,
    read_back,
)
from evocompress.core.errors import LibraryError
from evocompress.core.storage import GGUF, GROUPS, STORAGE

GROUPED = [kind for kind in STORAGE.values() if kind.lane == GROUPS]
LLAMA = [STORAGE[name] for name in ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "mxfp4", "f16")]
MADE = [*GROUPED, *LLAMA]


def known(columns=256):
    inputs = torch.randn(500, columns, generator=torch.Generator().manual_seed(1))
    inputs += 0.5 * inputs.roll(1, 1)
    return Statistics(gram=inputs.T @ inputs, sequences=5, tokens=500)


def matrix(rows=40, columns=256):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


def unpacked(words, bits, count):
    """Bit by bit: one after the other, the first in the lowest bits."""
    rows = []
    for row in words.tolist():
        whole = sum((word & 0xFFFFFFFF) << (32 * place) for place, word in enumerate(row))
        rows.append([(whole >> (place * bits)) & (2**bits - 1) for place in range(count)])
    return torch.tensor(rows)


@pytest.mark.parametrize("rounding", ["gptq", "nearest"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_parts_of_groups_give_back_the_weight(rounding, dtype):
    weight = matrix()
    for kind in GROUPED:
        (found,) = quantize_all([RoundingTask(weight, kind)], known(), rounding, dtype)
        packed = found.parts["packed"]
        codes = packed + 128.0 if kind.rounds_inputs else unpacked(packed, kind.bits, 256)
        scales = found.parts["scale"].float().repeat_interleave(kind.block or 256, 1)
        zeros = torch.full_like(codes, 2 ** (kind.bits - 1))
        if "zero_point" in found.parts:
            packed = unpacked(found.parts["zero_point"].T, kind.bits, 40).T
            zeros = packed.repeat_interleave(kind.block, 1)
        torch.testing.assert_close((codes - zeros) * scales, found.weight, rtol=1e-6, atol=1e-7)
        specs = part_specs(kind, (40, 256), dtype)
        assert {p: (tuple(t.shape), t.dtype) for p, t in found.parts.items()} == specs
        assert sum(t.nbytes for t in found.parts.values()) == kind.bytes(40, 256)


@pytest.mark.parametrize("rounding", ["gptq", "nearest"])
@pytest.mark.parametrize("kind", LLAMA, ids=lambda kind: kind.name)
def test_bytes_of_llama_types_give_back_the_weight(rounding, kind):
    (found,) = quantize_all([RoundingTask(matrix(), kind)], known(), rounding, torch.float32)
    assert torch.equal(ggml.dequantized(found.parts["packed"], kind), found.weight)
    assert found.parts["packed"].nbytes == kind.bytes(40, 256)
    specs = part_specs(kind, (40, 256), torch.float32)
    assert {p: (tuple(t.shape), t.dtype) for p, t in found.parts.items()} == specs


def test_several_matrices_and_types_are_as_each_alone():
    first, second = matrix(), matrix().flip(1)
    kinds = [STORAGE[name] for name in ("q4_0", "mxfp4", "q8_0")]
    tasks = [RoundingTask(weight, kind) for weight in (first, second) for kind in kinds]
    for task, found in zip(tasks, quantize_all(tasks, known(), "gptq", torch.float32), strict=True):
        (alone,) = quantize_all([task], known(), "gptq", torch.float32)
        assert (found.weight == alone.weight).float().mean() > 0.999


def test_zeros_stay_zero():
    mask = torch.rand(40, 256, generator=torch.Generator().manual_seed(2)) < 0.5
    sparse = matrix().masked_fill(mask, 0)
    for kind in (kind for kind in [*GROUPED, *LLAMA] if kind.has_zero):
        for rounding in ("gptq", "nearest"):
            task = RoundingTask(sparse, kind, mask)
            (found,) = quantize_all([task], known(), rounding, torch.float32)
            assert not found.weight[mask].any(), kind.name


@pytest.mark.parametrize("rounding", ["gptq", "nearest"])
def test_a_matrix_of_zeros_is_one_in_every_type(rounding):
    """Of codebooks as well, and rows of zeros between others."""
    some = matrix(8)
    some[3] = 0
    for kind in (kind for kind in STORAGE.values() if ggml.makes_all_types() or kind in MADE):
        for weight in (torch.zeros(8, 256), some):
            task = RoundingTask(weight, kind)
            (found,) = quantize_all([task], known(), rounding, torch.bfloat16)
            assert torch.equal(read_back(found.parts, kind, 256), found.weight), kind.name
            assert not found.weight[~weight.any(1)].any(), kind.name


@pytest.mark.parametrize("rounding", ["gptq", "nearest"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused_in_every_type(rounding, bad):
    """ggml would end the process, of some types."""
    weight = matrix(8)
    weight[3, 70] = bad
    for kind in STORAGE.values():
        if ggml.makes_all_types() or kind in MADE:
            with pytest.raises(LibraryError, match="not finite"):
                quantize_all([RoundingTask(weight, kind)], known(), rounding, torch.bfloat16)
    squares = torch.ones(256)
    squares[7] = bad
    with pytest.raises(LibraryError, match="mean squares of inputs, are not finite"):
        ggml.quantized(matrix(8), STORAGE["q4_0"], squares)


def test_a_scale_of_zero_has_a_zero_point():
    """As training may make it; the weights are zero whatever the integers are."""
    kind, codes = STORAGE["w4g32z"], torch.arange(64, dtype=torch.uint8).view(1, 64) % 16
    scales = torch.tensor([[0.0, 0.5]])
    rounded = Rounded(codes, scales, -scales * 3)
    parts = QuantizedMatrix(rounded.weight, kind, torch.float32, rounded).parts
    assert unpacked(parts["zero_point"].T, 4, 1).T.tolist() == [[0, 3]]
    assert torch.equal(read_back(parts, kind, 64), rounded.weight)


def test_words_hold_every_integer():
    codes = torch.arange(250).view(2, 125)
    for bits in range(2, 9):
        own = (codes % 2**bits).to(torch.uint8)
        assert torch.equal(unpacked(in_words(own, bits), bits, 125), own.long())


def test_what_is_read_of_the_inputs():
    assert needs_of(STORAGE["q4_0"], "gptq") == needs_of(STORAGE["w4g64"], "gptq") == "gram"
    assert needs_of(STORAGE["q4_k"], "gptq") == needs_of(STORAGE["q4_0"], "nearest") == "squares"
    assert needs_of(STORAGE["w4g64"], "nearest") == "nothing"
    assert {kind.lane for kind in LLAMA} == {GGUF}

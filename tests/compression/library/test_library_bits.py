"""Matrices of coarser types: made after zeros and widths, and read back from what is stored."""

from itertools import product

import pytest
import torch
from library_setting import Setting, brute_force_inputs, matrix_units

from evocompress.compression.criteria import CRITERIA, Statistics
from evocompress.compression.library import open_library
from evocompress.compression.library.order import Methods, methods_named
from evocompress.compression.live_model import LiveModel
from evocompress.compression.quantization.ggml import dequantized
from evocompress.compression.quantization.gptq import RoundingTask
from evocompress.compression.quantization.quantized import quantize_all
from evocompress.core.errors import LibraryError
from evocompress.core.storage import STORAGE
from evocompress.core.types import DENSE, Candidate, Level
from evocompress.models.families.outer import every_unit

TYPES = ("q8_0", "q4_1", "q4_0")
GROUPED = ("w4g32", "w3g32z")
UP, DOWN = "model.layers.1.mlp.up_proj", "model.layers.1.mlp.down_proj"
NARROW = Level(channels=32)


def typed(setting, names, zeros=()):
    """Every matrix whose rows have whole blocks of 32, at all types, each at all zeros."""
    return {
        unit.name: [
            DENSE,
            *(Level(zeros=int(unit.numel * f)) for f in zeros),
            *(Level(zeros=int(unit.numel * f), bits=n) for n in names for f in (0, *zeros)),
        ]
        for unit in matrix_units(setting.loaded)
        if unit.shape[1] % 32 == 0
    }


def statistics_of(setting, name, columns=slice(None)):
    inputs = brute_force_inputs(setting.loaded.model, setting.tokens, name).flatten(0, 1)
    inputs = inputs[:, columns]
    count, tokens = len(setting.tokens), setting.tokens.numel()
    return Statistics(gram=(inputs.T @ inputs).float(), sequences=count, tokens=tokens)


def assert_near(found, expected):
    """Equal, but where rounding errors of the statistics carry a weight to the next value."""
    found, expected = found.float(), expected.float()
    assert found.shape == expected.shape
    assert (found != expected).float().mean() < 0.02
    # A value further is at most the largest weight by the steps of the coarsest type, of two bits.
    assert (found - expected).abs().max() <= expected.abs().max()


@pytest.mark.parametrize("names", [TYPES, GROUPED], ids=["gguf", "groups"])
def test_levels_are_as_by_hand(names, tmp_path):
    setting = Setting()
    wanted = typed(setting, names)
    library = setting.build(tmp_path / "library", wanted=wanted)
    for name, levels in wanted.items():
        weight = setting.loaded.model.get_parameter(f"{name}.weight").data
        for level in levels[1:]:
            task = RoundingTask(weight, STORAGE[level.bits])
            (made,) = quantize_all([task], statistics_of(setting, name), "gptq", weight.dtype)
            assert_near(library.load(name, level)["weight"], made.weight)
            parts = library.parts(name, level)
            assert sum(part.nbytes for part in parts.values()) == task.kind.bytes(*weight.shape)
            assert library.error(name, level) > 0


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("names", [TYPES, GROUPED], ids=["gguf", "groups"])
def test_a_head_is_rounded_by_what_it_reads_and_an_embedding_row_by_row(
    names, model_type, tmp_path
):
    setting = Setting(model_type, hessians="propagated")
    units = every_unit(setting.loaded.family, setting.loaded.model)
    outer = {unit.name: unit.role for unit in units if unit.kind == "outer"}
    levels = [DENSE, *(Level(bits=name) for name in names)]
    library = setting.build(tmp_path / "library", wanted=dict.fromkeys(outer, levels))
    known = statistics_of(setting, "lm_head")
    ones = Statistics(squares=torch.ones(64), sequences=1)
    alone = "embedding" if len(outer) == 2 else ""
    for (name, role), level in product(outer.items(), levels[1:]):
        weight = setting.loaded.model.get_parameter(f"{name}.weight").data
        ways = (ones, "nearest") if role == alone else (known, "gptq")
        (made,) = quantize_all([RoundingTask(weight, STORAGE[level.bits])], *ways, weight.dtype)
        assert_near(library.load(name, level)["weight"], made.weight)
        parts = library.parts(name, level).values()
        assert sum(p.nbytes for p in parts) == STORAGE[level.bits].bytes(*weight.shape)
        change = made.weight - weight
        share = (change @ ones.squares.diag() if role == alone else change @ known.gram).mul(change)
        energy = weight.square() if role == alone else (weight @ known.gram).mul(weight)
        error = float(share.sum() / energy.sum())
        assert library.error(name, level) == pytest.approx(error, rel=0.05)


def test_what_is_stored_is_what_is_computed_with(tmp_path):
    setting = Setting()
    wanted = typed(setting, TYPES)
    library = setting.build(tmp_path / "library", wanted=wanted)
    again = open_library(tmp_path / "library", setting.loaded)
    for name, levels in wanted.items():
        for level in levels[1:]:
            packed = again.parts(name, level)["packed"]
            weight = library.load(name, level)["weight"]
            assert torch.equal(dequantized(packed, STORAGE[level.bits]), weight.float())


def test_zeros_come_first_and_stay(tmp_path):
    setting = Setting()
    wanted = typed(setting, ("q4_0",), zeros=(0.5,))
    library = setting.build(tmp_path / "library", wanted=wanted)
    for name, (_, sparse, coarse, both) in wanted.items():
        zeros = library.load(name, sparse)["weight"] == 0
        found = library.load(name, both)["weight"]
        assert not found[zeros].any()
        plain = library.load(name, sparse)["weight"]
        task = RoundingTask(plain, STORAGE["q4_0"], zeros)
        (made,) = quantize_all([task], statistics_of(setting, name), "gptq", plain.dtype)
        assert_near(found, made.weight)
        assert library.error(name, both) > library.error(name, sparse)
        assert library.error(name, both) > library.error(name, coarse)


@pytest.mark.parametrize("criterion", ["sparsegpt", "wanda"])
def test_a_narrowed_matrix_is_stored_after_it_is_cut(criterion, tmp_path):
    setting = Setting(widths=True, criterion=criterion)
    owner = UP.rpartition(".")[0]
    wanted = typed(setting, ("q4_0",), zeros=(0.5,))
    both = Level(zeros=wanted[UP][-1].zeros, bits="q4_0")
    wanted[DOWN] = [DENSE, Level(bits="f16")]
    wanted[owner] = [DENSE, NARROW]
    library = setting.build(tmp_path / "library", wanted=wanted)
    cut = library.load(owner, NARROW)
    weight = setting.loaded.model.get_parameter(f"{UP}.weight").data[cut["items"]]
    known = statistics_of(setting, UP)
    (sparse,) = CRITERIA[criterion].compress(
        weight, known, [Level(zeros=both.zeros * weight.numel() // (weight.numel() * 128 // 32))]
    )
    for level, plain, mask in (
        (Level(bits="q4_0"), weight, None),
        (both, sparse, sparse == 0),
    ):
        (made,) = quantize_all(
            [RoundingTask(plain, STORAGE["q4_0"], mask)], known, "gptq", weight.dtype
        )
        found = library.load(UP, level, NARROW)["weight"]
        assert_near(found, made.weight)
        packed = library.parts(UP, level, NARROW)["packed"]
        assert torch.equal(dequantized(packed, STORAGE["q4_0"]), found.float())


def test_a_live_model_has_the_weights_of_the_type(tmp_path):
    setting = Setting()
    library = setting.build(tmp_path / "library", wanted=typed(setting, TYPES))
    level = Level(bits="q4_0")
    with LiveModel(setting.loaded, library) as live:
        live.apply(Candidate.from_json({UP: level.to_json()}))
        now = setting.loaded.model.get_parameter(f"{UP}.weight")
        assert torch.equal(now, library.load(UP, level)["weight"])


def test_a_library_rounded_otherwise_does_not_serve(tmp_path):
    setting = Setting()
    wanted = typed(setting, TYPES)
    setting.build(tmp_path / "library", wanted=wanted)
    other = Setting(rounding="nearest")
    with pytest.raises(LibraryError, match="was made with rounding gptq, not nearest"):
        other.build(tmp_path / "library", wanted=wanted)


def test_rows_that_blocks_do_not_divide_are_refused(tmp_path):
    setting = Setting()
    with pytest.raises(LibraryError, match="w4g128 is impossible for a matrix with 64 inputs"):
        setting.build(tmp_path / "library", wanted={UP: [Level(bits="w4g128")]})


def needs(rounding, stored, criterion=None):
    methods = methods_named(criterion, None, False, rounding, stored)
    assert isinstance(methods, Methods)
    return methods.matrix_needs


def test_only_what_is_needed_is_observed():
    assert needs("gptq", ["q4_0"]) == {"gram"}
    assert needs("nearest", ["q4_0"]) == {"squares"}
    assert needs("nearest", ["w4g32"]) == frozenset()
    assert needs("gptq", ["w4g32"], "wanda") == {"gram"}
    assert needs("nearest", ["w4g32"], "wanda") == {"squares"}
    assert needs("gptq", []) == frozenset()


@pytest.mark.parametrize("rounding", ["gptq", "nearest"])
@pytest.mark.parametrize("names", [TYPES, GROUPED, ("mxfp4",)], ids=str)
def test_weights_that_are_not_finite_are_named(names, rounding, tmp_path):
    setting = Setting(rounding=rounding)
    setting.loaded.model.get_parameter(f"{UP}.weight").data[3, 5] = float("nan")
    with pytest.raises(LibraryError, match=f"{UP} has weights that are not finite"):
        setting.build(tmp_path / "library", wanted=typed(setting, names))

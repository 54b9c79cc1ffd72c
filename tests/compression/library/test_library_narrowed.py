"""Matrices that are narrowed and have zeros as well: made on demand, as they would be by hand."""

import pytest
import torch
from by_hand import ByHand
from library_setting import Setting, as_rows, brute_force_inputs, matrix_units
from safetensors import safe_open

from evocompress.compression.criteria import CRITERIA, Statistics
from evocompress.compression.library import open_library
from evocompress.core.errors import LibraryError
from evocompress.core.types import DENSE, Level

UP, DOWN = "model.layers.1.mlp.up_proj", "model.layers.1.mlp.down_proj"
NARROW = Level(channels=40)


def narrowed_by_hand(setting, hand, name, inputs, found, level):
    """A narrow and sparse matrix (out, in), and how many zeros it should have.

    `inputs` (tokens, in) are the matrix's, `found` is its sub-layer as loaded.
    """
    module = setting.loaded.model.get_submodule(name)
    dense = as_rows(module, module.weight.data)
    if module is hand.output:
        weight, inputs = as_rows(module, found["weight"]), inputs[:, hand.columns(found)]
    else:
        weight = dense[hand.rows(name, found)]
    statistics = Statistics(
        gram=(inputs.T @ inputs).float(),
        sequences=len(setting.tokens),
        tokens=setting.tokens.numel(),
    )
    zeros = level.zeros * weight.numel() // dense.numel()
    (result,) = CRITERIA[setting.config.criterion].compress(
        weight, statistics, [Level(zeros=zeros)]
    )
    return result, zeros


def assert_narrowed(setting, library, unit):
    """A matrix at some levels is as by hand at every width of its sub-layer."""
    hand, module = ByHand(setting, unit.parent), setting.loaded.model.get_submodule(unit.name)
    model, tokens = setting.loaded.model, setting.tokens
    inputs = brute_force_inputs(model, tokens, unit.name).flatten(0, 1)
    for width in setting.wanted[unit.parent][1:]:
        cut = library.load(unit.parent, width)
        for level in setting.wanted[unit.name][1::2]:
            expected, zeros = narrowed_by_hand(setting, hand, unit.name, inputs, cut, level)
            found = library.load(unit.name, level, width)["weight"]
            assert found.is_contiguous()
            found = as_rows(module, found)
            assert found.shape == expected.shape
            assert int((found == 0).sum()) == zeros
            flips = ((found == 0) != (expected == 0)).any(1)
            assert int(flips.sum()) <= 2
            difference = (found - expected)[~flips].norm() / expected.norm()
            assert float(difference) < 1e-3, f"{unit.name} {width.key} {level.key}"


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "phi3", "opt"])
@pytest.mark.parametrize("criterion", ["sparsegpt", "wanda", "magnitude"])
def test_narrow_and_sparse_is_as_by_hand(model_type, criterion, tmp_path):
    setting = Setting(model_type, widths=True, criterion=criterion)
    library = setting.build(tmp_path / "library")
    for unit in matrix_units(setting.loaded):
        if unit.block == 2:
            assert_narrowed(setting, library, unit)


def test_patterns_follow_the_width(tmp_path):
    setting = Setting(widths=True)
    setting.wanted |= {name: [Level(64 * 128 // 2, "2:4")] for name in (UP, DOWN)}
    odd = Level(channels=30)
    setting.wanted["model.layers.1.mlp"] = [NARROW, odd]
    library = setting.build(tmp_path)
    for name in (UP, DOWN):
        (level,) = setting.wanted[name]
        found = library.load(name, level, NARROW)["weight"]
        assert found.shape == ((40, 64) if name == UP else (64, 40))
        assert bool(((found.reshape(len(found), -1, 4) == 0).sum(-1) == 2).all())
    assert library.load(UP, setting.wanted[UP][0], odd)["weight"].shape == (30, 64)
    with pytest.raises(LibraryError, match="pattern 2:4 does not divide the 30 inputs"):
        library.load(DOWN, setting.wanted[DOWN][0], odd)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    setting = Setting(widths=True)
    return setting, setting.build(tmp_path_factory.mktemp("joint")).path


def test_what_is_put_into_the_model_later_does_not_matter(made):
    setting, path = made
    level = setting.wanted[UP][2]
    first = open_library(path, setting.loaded).load(UP, level, NARROW)["weight"]
    library = open_library(path, setting.loaded)
    parameter = setting.loaded.model.get_parameter(f"{UP}.weight")
    dense = parameter.data
    try:
        parameter.data = torch.zeros(3, 3)
        assert torch.equal(library.load(UP, level, NARROW)["weight"], first)
    finally:
        parameter.data = dense


def test_results_are_kept_up_to_the_limit(made):
    setting, path = made
    library = open_library(path, setting.loaded, cache_mib=1)
    cache = library._narrowed.cache
    loads = [(DOWN, level, NARROW) for level in setting.wanted[DOWN][1:]]
    first = [library.load(*load)["weight"] for load in loads]
    for load, one in zip(loads, first, strict=True):
        assert library.load(*load)["weight"] is one
    most = 0
    for unit in matrix_units(setting.loaded):
        for level in setting.wanted[unit.name][1:]:
            for width in setting.wanted[unit.parent][1:]:
                library.load(unit.name, level, width)
                most = max(most, cache.bytes)
    assert 2**19 < most <= 2**20
    for load, one in zip(loads, first, strict=True):
        again = library.load(*load)["weight"]
        assert again is not one and torch.equal(again, one)


@pytest.mark.parametrize(
    ("level", "width", "words"),
    [
        (Level(zeros=5), NARROW, f"stores no zeros=5 of {UP}"),
        (DENSE, NARROW, f"stores no dense of {UP}"),
        (None, Level(channels=41), "stores no channels=41 of model.layers.1.mlp"),
    ],
)
def test_what_is_not_stored_is_refused(made, level, width, words):
    setting, path = made
    with pytest.raises(LibraryError, match=words):
        open_library(path, setting.loaded).load(UP, level or setting.wanted[UP][1], width)


@pytest.mark.parametrize(
    ("criterion", "kept"), [("sparsegpt", "gram"), ("wanda", "squares"), ("magnitude", None)]
)
def test_statistics_are_stored_for_what_is_narrow_and_sparse_only(criterion, kept, tmp_path):
    setting = Setting(widths=True, criterion=criterion)
    del setting.wanted["model.layers.1.attention"]
    del setting.wanted["model.layers.2.attention"]
    del setting.wanted["model.layers.2.mlp.down_proj"]
    setting.build(tmp_path)
    words = {
        0: ["attention_in", "attention_out", "mlp_in", "mlp_out"],
        1: ["mlp_in", "mlp_out"],
        2: ["mlp_in"],
    }
    for block, inputs in words.items():
        with safe_open(tmp_path / f"block-{block:04d}.safetensors", framework="pt") as file:
            found = [key for key in file.keys() if key.startswith("statistics")]  # noqa: SIM118
        assert found == [f"statistics::{word}::{kept}" for word in inputs if kept]


def test_matrices_or_widths_alone_need_no_statistics(tmp_path):
    for name, setting in (
        ("widths", Setting(widths=True, matrices=False)),
        ("matrices", Setting()),
    ):
        setting.build(tmp_path / name)
        with safe_open(tmp_path / name / "block-0000.safetensors", framework="pt") as file:
            assert not any("statistics" in key for key in file.keys())  # noqa: SIM118


def test_damage_is_named_when_a_matrix_is_made(made, tmp_path):
    setting, path = made
    for file in path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    library = open_library(tmp_path, setting.loaded)
    library.verify()
    file = tmp_path / "block-0001.safetensors"
    content = file.read_bytes()
    file.write_bytes(b"\xff" * 16 + content[16:])
    with pytest.raises(LibraryError, match="block-0001.safetensors is damaged"):
        library.load(UP, setting.wanted[UP][1], NARROW)
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(LibraryError, match="block-0001.safetensors is corrupted"):
        library.verify()

"""Libraries of tiny models against the whole model run plainly with hooks on every matrix."""

import re
import threading
import time

import pytest
import torch
from library_setting import (
    Killed,
    Setting,
    as_rows,
    brute_force_inputs,
    kill_at,
    matrix_units,
    wanted_for,
)

from evocompress.compression.criteria import CRITERIA, Statistics
from evocompress.compression.criteria.base import output_energy
from evocompress.core.errors import LibraryError
from evocompress.core.files import read_json, write_json
from evocompress.core.types import DENSE, DROP, Level

FAMILIES = ["llama", "gpt2", "opt", "phi3", "gemma3_text"]


def expected_levels(setting, unit, levels):
    """(weights in the module's orientation, Gram matrix) of a unit in the model as it is."""
    inputs = brute_force_inputs(setting.loaded.model, setting.tokens, unit).flatten(0, 1)
    gram = (inputs.T @ inputs).float()
    module = setting.loaded.model.get_submodule(unit)
    statistics = Statistics(gram, None, len(setting.tokens), setting.tokens.numel(), 0.01)
    weights = CRITERIA[setting.config.criterion].compress(
        as_rows(module, module.weight.data), statistics, levels
    )
    return [as_rows(module, weight) for weight in weights], gram


def assert_same(module, found, expected, what):
    """Equal masks up to one flip at the threshold by rounding, and equal weights otherwise.

    A flip changes the rest of its output's weights, whichever way a module stores them.
    """
    assert found.shape == expected.shape, what
    found, expected = as_rows(module, found), as_rows(module, expected)
    flips = ((found == 0) != (expected == 0)).any(1)
    assert int(flips.sum()) <= 2, what
    difference = (found - expected)[~flips].norm() / expected.norm()
    assert float(difference) < 1e-4, f"{what}: {difference}"


@pytest.mark.parametrize("model_type", [*FAMILIES, "qwen2_moe"])
def test_dense_hessians_come_from_the_whole_dense_model(model_type, tmp_path):
    setting = Setting(model_type)
    # What is sent to an expert depends on the router; a shared one reads every token.
    setting.wanted = {n: levels for n, levels in setting.wanted.items() if ".experts." not in n}
    library = setting.build(tmp_path / "library")
    for unit, levels in setting.wanted.items():
        expected, gram = expected_levels(setting, unit, levels)
        module = setting.loaded.model.get_submodule(unit)
        weight = as_rows(module, module.weight.data)
        assert library.levels(unit) == tuple(levels)
        for level, values in list(zip(levels, expected, strict=True))[1:]:
            found = library.load(unit, level)["weight"]
            assert_same(module, found, values, f"{unit} {level.key}")
            assert int((found == 0).sum()) == level.zeros
            change = weight - as_rows(module, found)
            error = output_energy(change, gram) / output_energy(weight, gram)
            assert library.error(unit, level) == pytest.approx(error, rel=1e-2)
        assert library.error(unit, DENSE) == 0


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "opt"])
def test_propagated_hessians_see_the_blocks_compressed_so_far(model_type, tmp_path):
    setting = Setting(model_type, hessians="propagated")
    library = setting.build(tmp_path / "library")
    blocks = {unit.block: [] for unit in setting.loaded.family.units(setting.loaded.model)}
    for unit in setting.loaded.family.units(setting.loaded.model):
        if unit.kind == "matrix":
            blocks[unit.block].append(unit.name)
    for names in blocks.values():
        middle = {}
        for name in names:
            levels = setting.wanted[name][1:]
            expected, _ = expected_levels(setting, name, levels)
            module = setting.loaded.model.get_submodule(name)
            for level, values in zip(levels, expected, strict=True):
                found = library.load(name, level)["weight"]
                assert_same(module, found, values, f"{name} {level.key}")
            # The middle of dense and three levels, the lower of two.
            middle[name] = library.load(name, levels[0])["weight"]
        for name, weight in middle.items():
            setting.loaded.model.get_submodule(name).weight.data = weight


def test_propagated_level_can_be_chosen(tmp_path):
    setting = Setting(hessians="propagated")
    deepest = {unit: levels[-1] for unit, levels in setting.wanted.items()}
    library = setting.build(tmp_path / "deepest", propagate=deepest)
    assert library.manifest.recipe.propagated == deepest
    default = setting.build(tmp_path / "default")
    level = setting.wanted["model.layers.2.mlp.down_proj"][1]
    pair = [lib.load("model.layers.2.mlp.down_proj", level)["weight"] for lib in (library, default)]
    assert not torch.equal(*pair)
    with pytest.raises(LibraryError, match="not wanted"):
        setting.build(
            tmp_path / "other", propagate={"model.layers.2.mlp.down_proj": Level(zeros=1)}
        )


@pytest.mark.parametrize("criterion", ["magnitude", "wanda"])
def test_other_criteria(criterion, tmp_path):
    setting = Setting(criterion=criterion)
    library = setting.build(tmp_path / "library")
    for unit, levels in setting.wanted.items():
        expected, _ = expected_levels(setting, unit, levels[1:])
        module = setting.loaded.model.get_submodule(unit)
        for level, values in zip(levels[1:], expected, strict=True):
            found = library.load(unit, level)["weight"]
            assert_same(module, found, values, f"{unit} {level.key}")
            assert library.error(unit, level) is None


def test_patterns_and_bfloat16_are_stored(tmp_path):
    setting = Setting("gpt2")
    setting.loaded.model.bfloat16()
    setting.wanted = {
        unit.name: [Level(unit.numel // 2, "2:4")] for unit in matrix_units(setting.loaded)
    }
    library = setting.build(tmp_path / "library")
    for unit, (level,) in setting.wanted.items():
        found = library.load(unit, level)["weight"]
        assert found.dtype == torch.bfloat16
        groups = found.T.reshape(found.shape[1], -1, 4)
        assert bool(((groups == 0).sum(-1) == 2).all())


@pytest.mark.parametrize("hessians", ["dense", "propagated"])
def test_a_build_leaves_the_model_alone(hessians, tmp_path):
    setting = Setting(hessians=hessians)
    before = {
        name: (p.data_ptr(), p.clone()) for name, p in setting.loaded.model.named_parameters()
    }
    setting.build(tmp_path / "library")
    for name, parameter in setting.loaded.model.named_parameters():
        pointer, values = before[name]
        assert parameter.data_ptr() == pointer and torch.equal(parameter, values)
    assert not any(m._forward_pre_hooks for m in setting.loaded.model.modules())


def test_batch_size_changes_nothing_but_rounding(setting, tmp_path):
    one = setting.build(tmp_path / "one", batch=1)
    five = setting.build(tmp_path / "five", batch=5)
    unit = "model.layers.2.mlp.down_proj"
    module = setting.loaded.model.get_submodule(unit)
    for level in setting.wanted[unit][1:]:
        pair = [library.load(unit, level)["weight"] for library in (one, five)]
        assert_same(module, *pair, level.key)


@pytest.mark.parametrize("hessians", ["dense", "propagated"])
@pytest.mark.parametrize("position", [1, 2])
def test_a_killed_build_goes_on_to_the_same_bytes(hessians, position, tmp_path):
    setting = Setting(hessians=hessians)
    setting.build(tmp_path / "whole")
    with pytest.raises(Killed):
        setting.build(tmp_path / "killed", progress=kill_at(position))
    first = tmp_path / "killed" / "block-0000.safetensors"
    written = first.stat().st_mtime_ns
    (tmp_path / "killed" / ".block-0001.safetensors.77.tmp").write_bytes(b"half")
    said = []
    setting.build(tmp_path / "killed", progress=lambda *report: said.append(report))
    assert first.stat().st_mtime_ns == written
    assert [done for done, _, _ in said] == list(range(4 - position))
    assert said[0][2] == f"block {position + 1} of 3"
    whole, resumed = (
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()}
        for name in ("whole", "killed")
    )
    assert whole == resumed


def test_a_lost_block_is_made_again(setting, tmp_path):
    setting.build(tmp_path)
    lost = tmp_path / "block-0001.safetensors"
    content = lost.read_bytes()
    lost.unlink()
    setting.build(tmp_path)
    assert lost.read_bytes() == content


@pytest.mark.parametrize("what", ["torch", "transformers", "device", "instructions"])
def test_a_library_is_not_finished_under_other_circumstances(setting, what, tmp_path):
    setting.build(tmp_path)
    manifest = tmp_path / "manifest.json"
    data = read_json(manifest)
    before = data["versions"][what]
    data["versions"][what] = "another"
    write_json(manifest, data)
    setting.build(tmp_path)  # finished, it serves
    (tmp_path / "block-0001.safetensors").unlink()
    with pytest.raises(LibraryError, match=f"{what} was another, is {re.escape(before)}"):
        setting.build(tmp_path)
    del data["versions"][what]  # as an earlier version wrote it
    write_json(manifest, data)
    setting.build(tmp_path)


def test_a_complete_library_is_opened_not_built(setting, tmp_path):
    setting.build(tmp_path)
    fewer = wanted_for(setting.loaded, (0.5,))
    before = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    setting.build(tmp_path, wanted=fewer, progress=kill_at(0))
    assert before == {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}


def test_only_wanted_matrices_are_stored(setting, tmp_path):
    unit = "model.layers.1.mlp.down_proj"
    library = setting.build(tmp_path, wanted={unit: setting.wanted[unit]})
    files = {file.name for file in tmp_path.iterdir() if file.name != ".lock"}
    assert files == {"manifest.json", "block-0001.safetensors"}
    with pytest.raises(LibraryError, match="no unit"):
        library.levels("model.layers.0.mlp.down_proj")


def test_dense_levels_alone_need_no_file_of_tensors(setting, tmp_path):
    library = setting.build(tmp_path, wanted={})
    assert library.manifest.units == {}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"criterion": "wanda"}, "made with criterion sparsegpt, not wanda"),
        ({"damping": 0.1}, "made with damping 0.01, not 0.1"),
        ({"hessians": "propagated"}, "made with hessians dense, not propagated"),
    ],
)
def test_another_recipe_is_refused(setting, tmp_path, change, words):
    setting.build(tmp_path)
    setting.config = setting.config.model_copy(update=change)
    with pytest.raises(LibraryError, match=words):
        setting.build(tmp_path)


def test_other_calibration_levels_and_model_are_refused(setting, tmp_path):
    setting.build(tmp_path)
    with pytest.raises(LibraryError, match="made with calibration calibration, not other"):
        setting.build(tmp_path, calibration="other")
    with pytest.raises(LibraryError, match="lacks model.layers.0.self_attn.q_proj at zeros=1"):
        setting.build(tmp_path, wanted={"model.layers.0.self_attn.q_proj": [Level(zeros=1)]})
    with pytest.raises(LibraryError, match="made with model"):
        Setting("gpt2").build(tmp_path, wanted={})


def test_impossible_wishes_are_refused(setting, tmp_path):
    with pytest.raises(LibraryError, match="no matrix, attention or mlp model.layers.9"):
        setting.build(tmp_path / "unit", wanted={"model.layers.9": [DENSE]})
    with pytest.raises(LibraryError, match="level drop is impossible"):
        setting.build(tmp_path / "drop", wanted={"model.layers.0.mlp.up_proj": [DROP]})
    setting.config = setting.config.model_copy(update={"criterion": "guess"})
    with pytest.raises(LibraryError, match="choose one of magnitude, wanda, sparsegpt"):
        setting.build(tmp_path / "criterion")


def test_a_second_builder_waits_and_takes_what_the_first_has_made(setting, tmp_path):
    said, go_on = {"first": [], "second": []}, threading.Event()

    def build(name):
        def progress(done, total, text):
            said[name].append(text)
            if name == "first":
                go_on.wait()

        setting.build(tmp_path, progress=progress)

    builders = {name: threading.Thread(target=build, args=(name,)) for name in said}
    for name, builder in builders.items():
        builder.start()
        while not said[name]:
            time.sleep(0.01)
    go_on.set()
    for builder in builders.values():
        builder.join()
    assert len(said["first"]) > 1
    assert said["second"] == ["waiting for another process that builds it"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("widths", [False, True])
def test_weights_that_are_not_finite_are_refused(bad, widths, tmp_path):
    chosen = {"criterion": "magnitude", "width_criterion": "magnitude"}
    setting = Setting(widths=widths, matrices=not widths, **chosen)
    unit = "model.layers.1.mlp.down_proj"
    setting.loaded.model.get_parameter(f"{unit}.weight").data[3, 5] = bad
    with pytest.raises(LibraryError, match=f"{unit} has weights that are not finite"):
        setting.build(tmp_path / "library")

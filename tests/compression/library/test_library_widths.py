"""Libraries with widths against structured criteria called by hand on a plainly run model."""

import copy

import pytest
import torch
from by_hand import ByHand
from filelock import FileLock
from library_setting import Killed, Setting, as_rows, kill_at, wanted_for, widths_for
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy

from evocompress.compression.live_model import LiveModel
from evocompress.core.errors import LibraryError
from evocompress.core.types import DENSE, DROP, Candidate, Level

FAMILIES = ["llama", "gpt2", "opt", "phi3", "qwen3"]


def plain_gradients(setting):
    """Of the summed cross-entropy of all next tokens, by parameter name."""
    model = copy.deepcopy(setting.loaded.model).requires_grad_(True)
    logits = model(setting.tokens).logits[:, :-1]
    targets = setting.tokens[:, 1:]
    cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_cut(found, cut, output, what):
    assert torch.equal(found["groups"], cut.groups), what
    assert torch.equal(found["items"], cut.items), what
    expected = as_rows(output, cut.weight)
    assert found["weight"].shape == expected.shape, what
    assert float((found["weight"] - expected).norm() / expected.norm()) < 1e-3, what
    assert ("bias" in found) == (cut.bias is not None), what
    if cut.bias is not None:
        assert float((found["bias"] - cut.bias).norm() / cut.bias.norm()) < 3e-3, what


def assert_by_hand(setting, library, units=None):
    """Each sub-layer's widths are what the criterion makes of the model as it is now."""
    taylor = setting.config.width_criterion == "taylor"
    gradients = plain_gradients(setting) if taylor else None
    for unit, (dense, *levels) in widths_for(
        setting.loaded, setting.config.width_criterion
    ).items():
        if units is not None and unit not in units:
            continue
        hand = ByHand(setting, unit)
        assert library.levels(unit) == (dense, *levels)
        for level, cut in zip(levels, hand.cuts(levels, gradients), strict=True):
            assert_cut(library.load(unit, level), cut, hand.output, f"{unit} {level.key}")


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("criterion", ["obs_structured", "flap"])
def test_every_family_is_taken_apart_rightly(model_type, criterion, tmp_path):
    setting = Setting(model_type, widths=True, matrices=False, width_criterion=criterion)
    assert_by_hand(setting, setting.build(tmp_path / "library"))


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "phi3"])
@pytest.mark.parametrize("criterion", ["magnitude", "wanda", "minitron", "taylor"])
def test_every_criterion_gets_its_statistics(model_type, criterion, tmp_path):
    setting = Setting(model_type, widths=True, matrices=False, width_criterion=criterion)
    assert_by_hand(setting, setting.build(tmp_path / "library"))


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
@pytest.mark.parametrize("criterion", ["magnitude", "flap"])
def test_reconstruction_follows(model_type, criterion, tmp_path):
    options = {"width_criterion": criterion, "reconstruct": True}
    setting = Setting(model_type, widths=True, matrices=False, **options)
    library = setting.build(tmp_path / "library")
    assert_by_hand(setting, library)


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
@pytest.mark.parametrize(
    ("criterion", "reconstruct"), [("obs_structured", False), ("flap", True), ("wanda", True)]
)
def test_errors_are_those_of_the_outputs(model_type, criterion, reconstruct, tmp_path):
    options = {"width_criterion": criterion, "reconstruct": reconstruct}
    setting = Setting(model_type, widths=True, matrices=False, **options)
    library = setting.build(tmp_path / "library")
    for unit, (dense, *levels) in setting.wanted.items():
        hand = ByHand(setting, unit)
        assert library.error(unit, dense) == 0
        for level in levels:
            expected = hand.error(library.load(unit, level))
            assert library.error(unit, level) == pytest.approx(expected, rel=1e-3)


def test_errors_need_a_gram_matrix(tmp_path):
    setting = Setting(widths=True, matrices=False, width_criterion="flap")
    library = setting.build(tmp_path)
    unit = "model.layers.0.mlp"
    assert [library.error(unit, level) for level in library.levels(unit)[1:]] == [None] * 3


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
@pytest.mark.parametrize("matrices", [False, True])
def test_later_blocks_see_propagated_widths(model_type, matrices, tmp_path):
    options = {"width_criterion": "flap", "hessians": "propagated"}
    setting = Setting(model_type, widths=True, matrices=matrices, **options)
    library = setting.build(tmp_path / "library")
    path, handles = setting.loaded.family.layers_path, []
    for block in range(3):
        units = [f"{path}.{block}.attention", f"{path}.{block}.mlp"]
        assert_by_hand(setting, library, units)
        for unit in units:
            hand = ByHand(setting, unit)
            handles += put_middle(library, hand, unit, setting.wanted)
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "phi3", "opt"])
@pytest.mark.parametrize("criterion", ["flap", "obs_structured"])
def test_the_live_model_computes_what_the_full_size_does(model_type, criterion, tmp_path):
    setting = Setting(model_type, widths=True, width_criterion=criterion)
    library = setting.build(tmp_path)
    model, wanted = setting.loaded.model, setting.wanted
    levels = {}
    for unit in setting.loaded.family.units(model):
        if unit.kind == "matrix":
            levels[unit.name] = wanted[unit.name][1]
        elif unit.kind != "block":
            levels[unit.name] = MIDDLE[unit.kind](wanted[unit.name])
    with LiveModel(setting.loaded, library) as live, torch.no_grad():
        live.apply(Candidate(tuple(sorted(levels.items()))))
        found = model(setting.tokens).logits
    for unit in [name for name, level in levels.items() if level.narrow]:
        put_middle(library, ByHand(setting, unit), unit, wanted)
    with torch.no_grad():
        assert torch.allclose(found, model(setting.tokens).logits, rtol=1e-3, atol=1e-3)


def attention_middle(levels):
    """By heads of queries and of keys: the lower of two in the middle."""
    ordered = sorted(levels[1:], key=lambda one: -one.kv_groups * (one.group_heads + 1))
    return [levels[0], *ordered][(len(levels) - 1) // 2]


MIDDLE = {"attention": attention_middle, "mlp": lambda levels: levels[1]}


def put_middle(library, hand, unit, wanted):
    """Put the middle levels of a sub-layer into the model, at full size."""
    width = MIDDLE[unit.rsplit(".", 1)[1]](wanted[unit])
    found = library.load(unit, width)
    names = list(dict.fromkeys(name for name, _, _ in hand.places))
    for name in names:
        module = hand.model.get_submodule(name)
        sparse = wanted[name][1] if name in wanted else DENSE
        narrow = found["weight"] if module is hand.output else None
        if not sparse.dense:
            narrow = library.load(name, sparse, width)["weight"]
        if narrow is not None:
            module.weight.data = as_rows(module, full_size(hand, module, name, narrow, found))
    if hand.output.bias is not None:
        hand.output.bias.data = found["bias"]
        return []
    if "bias" not in found:
        return []
    add = hand.output.register_forward_hook(lambda module, _, output: output + found["bias"])
    return [add]


def full_size(hand, module, name, narrow, found):
    """A narrowed matrix (out, in) at full size: zero inputs, or dense outputs, where cut."""
    dense = as_rows(module, module.weight.data)
    if module is hand.output:
        full = torch.zeros_like(dense)
        full[:, hand.columns(found)] = as_rows(module, narrow)
        return full
    full = dense.clone()
    full[hand.rows(name, found)] = as_rows(module, narrow)
    return full


def test_index_tensors_and_types(tmp_path):
    setting = Setting("gpt2", widths=True)
    setting.loaded.model.bfloat16()
    library = setting.build(tmp_path)
    for unit, (_, *levels) in setting.wanted.items():
        for level in levels:
            found = library.load(unit, level)
            kept = {"groups", "items", "bias"} if level.narrow else set()
            assert set(found) == {"weight"} | kept
            assert found["weight"].dtype == torch.bfloat16
            assert found["weight"].data_ptr() % 64 == 0
            for part in kept - {"bias"}:
                assert found[part].dtype == torch.int64
                assert bool((found[part].diff() > 0).all())


@pytest.mark.parametrize("options", [{}, {"hessians": "propagated"}])
@pytest.mark.parametrize("criterion", ["taylor", "flap", "obs_structured"])
def test_a_killed_build_with_widths_goes_on_to_the_same_bytes(criterion, options, tmp_path):
    setting = Setting(widths=True, width_criterion=criterion, **options)
    setting.build(tmp_path / "whole")
    with pytest.raises(Killed):
        setting.build(tmp_path / "killed", progress=kill_at(1))
    setting.build(tmp_path / "killed")
    whole, resumed = (
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()}
        for name in ("whole", "killed")
    )
    assert whole == resumed


@pytest.mark.parametrize("criterion", ["taylor", "flap"])
def test_a_build_with_widths_leaves_the_model_alone(criterion, tmp_path):
    setting = Setting(widths=True, width_criterion=criterion, hessians="propagated")
    model = setting.loaded.model
    before = {name: (p.data_ptr(), p.clone()) for name, p in model.named_parameters()}
    setting.build(tmp_path / "library")
    assert before.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        pointer, values = before[name]
        assert parameter.data_ptr() == pointer and torch.equal(parameter, values)
        assert not parameter.requires_grad and parameter.grad is None
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_progress_tells_of_the_gradients(tmp_path):
    setting = Setting(widths=True, matrices=False, width_criterion="taylor")
    said = []
    setting.build(tmp_path, progress=lambda *report: said.append(report))
    assert said[:2] == [(0, 3, "gradients: sequence 1 of 9"), (0, 3, "gradients: sequence 3 of 9")]
    assert said[5:] == [(n, 3, f"block {n + 1} of 3") for n in range(3)] + [(3, 3, "")]


@pytest.fixture(scope="module")
def joint(tmp_path_factory):
    setting = Setting(widths=True)
    return setting, setting.build(tmp_path_factory.mktemp("joint")).path


@pytest.mark.parametrize(
    ("wanted", "config"),
    [
        (lambda loaded: wanted_for(loaded), {"width_criterion": "flap", "reconstruct": True}),
        (lambda loaded: widths_for(loaded), {"criterion": "wanda"}),
        (lambda loaded: {"model.layers.1.mlp": [Level(channels=40)]}, {}),
        (lambda loaded: {"model.layers.1.mlp": [DENSE]}, {"criterion": "wanda"}),
    ],
)
def test_a_library_serves_who_wants_less(joint, wanted, config):
    setting, path = joint
    small = Setting(**config)
    with FileLock(path / ".lock"):  # whoever would build is kept out
        library = small.build(path, wanted=wanted(setting.loaded))
    assert library.manifest.recipe.width_criterion == "obs_structured"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"width_criterion": "magnitude"}, "with width_criterion obs_structured, not magnitude"),
        ({"reconstruct": True}, "made with reconstruct False, not True"),
        ({"criterion": "wanda"}, "made with criterion sparsegpt, not wanda"),
    ],
)
def test_widths_made_otherwise_are_refused(joint, config, words):
    _, path = joint
    with pytest.raises(LibraryError, match=words):
        Setting(widths=True, **config).build(path)


def test_missing_widths_are_named(joint, tmp_path):
    setting, path = joint
    with pytest.raises(LibraryError, match="lacks model.layers.0.mlp at channels=41:"):
        setting.build(path, wanted={"model.layers.0.mlp": [Level(channels=41)]})
    matrices = Setting()
    matrices.build(tmp_path)
    with pytest.raises(LibraryError, match="lacks model.layers.0.attention at kv_groups=2,"):
        setting.build(tmp_path)


@pytest.mark.parametrize(
    ("kind", "level", "words"),
    [
        ("mlp", Level(channels=128), "give 1 to 127 channels"),
        ("mlp", Level(channels=0), "give 1 to 127 channels"),
        ("mlp", Level(kv_groups=1, group_heads=1), "give 1 to 127 channels"),
        ("mlp", DROP, "cannot be narrowed to drop"),
        ("attention", Level(kv_groups=3, group_heads=1), "give 1 to 2 kv_groups and 1 to 2 group"),
        ("attention", Level(kv_groups=2, group_heads=2), "but not both in full"),
        ("attention", Level(kv_groups=2), "give 1 to 2 kv_groups"),
        ("attention", Level(channels=8), "give 1 to 2 kv_groups"),
        ("attention", Level(zeros=8), "give 1 to 2 kv_groups"),
        ("mlp", Level(channels=8, bias=True), "must not say that a bias is added"),
    ],
)
def test_impossible_widths_are_refused_before_anything_is_written(kind, level, words, tmp_path):
    unit = f"model.layers.1.{kind}"
    with pytest.raises(LibraryError, match=words) as caught:
        Setting().build(tmp_path / "library", wanted={unit: [level]})
    assert unit in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "library").exists()


def test_flap_must_be_announced_only_where_the_output_has_no_bias(tmp_path):
    wanted = {"model.layers.1.mlp": [Level(channels=8)]}
    with pytest.raises(LibraryError, match="must say that a bias is added"):
        Setting(width_criterion="flap").build(tmp_path, wanted=wanted)
    wanted = {"transformer.h.1.mlp": [Level(channels=8, bias=True)]}
    with pytest.raises(LibraryError, match="must not say that a bias is added"):
        Setting("gpt2", width_criterion="flap").build(tmp_path, wanted=wanted)


def test_unknown_names_are_refused(tmp_path):
    setting = Setting(widths=True, width_criterion="magnitude")
    setting.config = setting.config.model_copy(update={"width_criterion": "guess"})
    with pytest.raises(LibraryError, match="width_criterion: there is no criterion 'guess'"):
        setting.build(tmp_path)
    setting = Setting()
    setting.config = setting.config.model_copy(update={"width_criterion": "guess"})
    assert setting.build(tmp_path).manifest.recipe.width_criterion is None
    with pytest.raises(LibraryError, match="no matrix, attention or mlp model.layers.1:"):
        setting.build(tmp_path, wanted={"model.layers.1": [DROP]})


@pytest.mark.parametrize("part", ["items", "groups"])
@pytest.mark.parametrize("last", [10**6, -1, "like the first", "missing"])
def test_heads_and_channels_that_there_are_not_are_refused(part, last, tmp_path):
    setting = Setting(widths=True, matrices=False)
    library = setting.build(tmp_path / "library")
    unit, width = "model.layers.1.mlp", Level(channels=40)
    if part == "groups":
        unit, width = "model.layers.1.attention", Level(kv_groups=2, group_heads=1)
    file = library.path / "block-0001.safetensors"
    content = load_file(file)
    key = f"{unit}::{width.key}::{part}"
    kept = content[key].tolist()[:-1]
    kept += {"like the first": kept[:1], "missing": []}.get(last, [last])
    save_file(content | {key: torch.tensor(kept)}, file)
    with pytest.raises(LibraryError, match=f"damaged .the {part} of {unit} at {width.key} are no"):
        library.load(unit, width)
    assert set(library.load(unit.replace("1", "0"), width)) == {"weight", "groups", "items"}

"""What the adapter for CNNs finds in a ResNet, against what is known of it."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from transformers import ResNetConfig, ResNetForImageClassification

from evocompress.compression.live_model import LiveModel
from evocompress.core.canonical import canonical
from evocompress.core.errors import ConfigError, ModelError
from evocompress.core.types import DROP, Candidate, Level
from evocompress.evaluation.heldout import count_flops
from evocompress.models.dummy_inputs import image_shape
from evocompress.models.families import dependency, family_of
from evocompress.models.loading import fingerprint, load
from evocompress.space.costs import cost_model
from evocompress.testing.plain_library import PlainLibrary
from evocompress.testing.probes import random_batch
from evocompress.testing.staged import require_packages
from evocompress.testing.tiny import tiny_resnet

KINDS = ("basic", "bottleneck")
STAGES = "resnet.encoder.stages"


@pytest.fixture(params=KINDS)
def loaded(request):
    require_packages("resnet")
    return tiny_resnet(request.param)


def candidate():
    first, last = (f"{STAGES}.{name}.mlp" for name in ("0.layers.0", "1.layers.2"))
    return Candidate(
        ((first, Level(channels=3)), (f"{STAGES}.1.layers.1.mlp", DROP), (last, Level(channels=2)))
    )


def test_blocks_and_their_links(loaded) -> None:
    family = loaded.family
    names = [
        f"{STAGES}.{name}" for name in ("0.layers.0", "1.layers.0", "1.layers.1", "1.layers.2")
    ]
    assert [family.block_names[index] for index in range(4)] == names
    units = family.units(loaded.model)
    droppable = [unit.droppable for unit in units if unit.kind == "block"]
    assert droppable == [True, False, True, True]
    axes = [(matrix.rows, matrix.columns, matrix.kernel) for matrix in family.matrices]
    if loaded.model.config.layer_type == "basic":
        assert axes == [(("channel",), (), (3, 3)), ((), ("channel",), (3, 3))]
    else:
        inner = (("channel",), ("inner",), (3, 3))
        assert axes == [(("inner",), (), (1, 1)), inner, ((), ("channel",), (1, 1))]
    norms = [follower.path for follower in family.mlp.followers]
    assert norms == [f"layer.{place}.normalization" for place in range(len(axes) - 1)]
    assert family.mlp.gate == f"layer.{len(axes) - 1}.normalization"


def test_costs_are_those_of_the_model_as_it_is(loaded) -> None:
    model, family = loaded.model, loaded.family
    predicted = cost_model(family.units(model), family.architecture(model)).of([candidate()])
    with LiveModel(loaded, PlainLibrary(loaded)) as live:
        live.apply(candidate())
        assert predicted["flops"][0] == count_flops(model, 1, family.task)
        # A dropped branch is not there, and shortcuts are left.
        assert predicted["params"][0] == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("layer_type", "sizes", "depths", "params", "products"),
    [
        ("basic", [64, 128, 256, 512], [2, 2, 2, 2], 11_689_512, 1.814e9),
        ("bottleneck", [256, 512, 1024, 2048], [3, 4, 6, 3], 25_557_032, 4.089e9),
    ],
    ids=["resnet-18", "resnet-50"],
)
def test_published_models_cost_what_is_published(layer_type, sizes, depths, params, products):
    require_packages("resnet")
    config = ResNetConfig(
        layer_type=layer_type, hidden_sizes=sizes, depths=depths, image_size=224, num_labels=1000
    )
    with torch.device("meta"):
        model = ResNetForImageClassification(config).eval()
    family = family_of(model)
    costs = cost_model(family.units(model), family.architecture(model)).dense()
    assert costs["params"] == params
    assert costs["flops"] / 2 == pytest.approx(products, rel=1e-3)


def test_a_narrow_branch_is_the_dense_one_with_silent_channels(loaded) -> None:
    model, library = loaded.model, PlainLibrary(loaded)
    unit, level = f"{STAGES}.1.layers.2.mlp", Level(channels=2)
    kept = library.kept(unit, level)
    dense = copy.deepcopy(model)
    layers = dense.get_submodule(f"{STAGES}.1.layers.2.layer")
    silenced = [kept.items] if len(layers) == 2 else [kept.groups, kept.items]
    for layer, stay in zip(layers[:-1], silenced, strict=True):
        gone = torch.ones(len(layer.normalization.weight), dtype=torch.bool)
        gone[stay] = False
        # The activation of zero is zero: nothing else reads these channels.
        layer.normalization.weight[gone] = 0
        layer.normalization.bias[gone] = 0
    pixels = random_batch(loaded.family, model)
    with LiveModel(loaded, library) as live:
        live.apply(Candidate(((unit, level),)))
        norm = model.get_submodule(f"{STAGES}.1.layers.2.layer.0.normalization")
        wide = dense.get_submodule(f"{STAGES}.1.layers.2.layer.0.normalization")
        for part in ("weight", "bias", "running_mean", "running_var"):
            assert torch.equal(getattr(norm, part), getattr(wide, part)[silenced[0]])
        narrow = model(pixels).logits
    torch.testing.assert_close(narrow, dense(pixels).logits, rtol=1e-5, atol=1e-5)
    assert (narrow - model(pixels).logits).abs().max() > 1e-3


def test_statistics_of_norms_are_in_the_fingerprint(loaded) -> None:
    before = fingerprint(loaded.model)
    loaded.model.get_buffer("resnet.embedder.embedder.normalization.running_mean").add_(1)
    assert fingerprint(loaded.model) != before


def test_without_the_package_a_line_says_so(loaded, monkeypatch) -> None:
    monkeypatch.setattr(dependency, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"'resnet' need Torch-Pruning.*'evocompress\[cnn\]'$"):
        family_of(loaded.model)


def test_it_is_followed_where_no_gradients_are_wanted(loaded) -> None:
    for nothing in (torch.no_grad(), torch.inference_mode()):
        with nothing:
            assert family_of(loaded.model).mlp == loaded.family.mlp


def test_the_image_processor_tells_the_size(loaded, tmp_path) -> None:
    sizes = ({"size": {"shortest_edge": 32}}, {"crop_size": {"height": 32, "width": 32}})
    for settings in sizes:
        loaded.model.save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        del config["image_size"]
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
        assert image_shape(load(str(tmp_path)).model) == (1, 32, 32)


@pytest.mark.parametrize(
    "settings",
    [
        {"size": {"longest_edge": 32}},
        {"size": {"max_height": 32, "max_width": 32}},
        {"crop_size": 32, "do_center_crop": False},
    ],
)
def test_an_image_processor_that_lets_sizes_vary_tells_none(loaded, tmp_path, settings) -> None:
    loaded.model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["image_size"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="tells no size of images"):
        load(str(tmp_path))


def test_what_the_shortcut_does_not_bypass_cannot_be_dropped(loaded) -> None:
    units = loaded.family.units(loaded.model)
    with pytest.raises(ConfigError, match=r"stages\.1\.layers\.0\.mlp' cannot be dropped"):
        canonical({f"{STAGES}.1.layers.0.mlp": DROP}, units)


def test_blocks_cannot_be_merged(loaded) -> None:
    units = loaded.family.units(loaded.model)
    levels = {f"{STAGES}.1.layers.1": Level(merge=1), f"{STAGES}.1.layers.2": DROP}
    with pytest.raises(ConfigError, match="convolutions cannot be merged"):
        canonical(levels, units)


def test_pixels_take_the_type_of_the_model(loaded) -> None:
    batch = random_batch(loaded.family, loaded.model)
    expected = loaded.family.hidden_states(loaded.model, batch)
    loaded.model.bfloat16()
    states = loaded.family.hidden_states(loaded.model, batch)
    assert states.dtype == torch.bfloat16
    torch.testing.assert_close(states.float(), expected, rtol=0.1, atol=0.1)
    assert count_flops(loaded.model, 1, loaded.family.task) > 0


def test_a_model_that_tells_no_size_of_images_is_refused() -> None:
    require_packages("resnet")
    config = ResNetConfig(num_labels=3, embedding_size=8, hidden_sizes=[8], depths=[1])
    with pytest.raises(ModelError, match="tells no size of images: put image_size"):
        family_of(ResNetForImageClassification(config))

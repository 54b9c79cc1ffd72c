"""Libraries of CNNs: a convolution is a linear map of patches, which are cut out by hand here."""

from __future__ import annotations

import pytest
import torch
from library_setting import CALIBRATION

from evocompress.compression.criteria import CRITERIA, STRUCTURED, Statistics, Structure
from evocompress.compression.library import build_library
from evocompress.compression.library.dense import DenseModel
from evocompress.compression.library.propagate import compressed
from evocompress.compression.live_model import LiveModel
from evocompress.core.config import LibraryConfig
from evocompress.core.types import DENSE, Candidate, Level
from evocompress.testing.probes import answer
from evocompress.testing.staged import require_packages
from evocompress.testing.tiny import tiny_resnet

STAGES = "resnet.encoder.stages"
BLOCK = f"{STAGES}.1.layers.0"
SEQUENCES = 5


@pytest.fixture(params=["basic", "bottleneck"])
def loaded(request):
    require_packages("resnet")
    return tiny_resnet(request.param, layers=2)


@pytest.fixture
def pixels():
    return torch.randn(SEQUENCES, 1, 32, 32, generator=torch.Generator().manual_seed(3))


def build(loaded, pixels, path, *, matrices=False, **config):
    biased = STRUCTURED[config.get("width_criterion", "obs_structured")].adds_bias
    wanted = {}
    for unit in loaded.family.units(loaded.model):
        if unit.kind == "mlp":
            wanted[unit.name] = [DENSE, *(Level(channels=n, bias=biased) for n in (3, 2))]
        elif unit.kind == "matrix" and matrices:
            wanted[unit.name] = [DENSE, Level(zeros=unit.numel // 2)]
    return build_library(
        loaded, wanted, pixels, CALIBRATION, LibraryConfig(**config), path, batch=2
    )


def patches(loaded, pixels, name):
    """What a convolution reads, (sequences, positions, in times kernel), patch by patch."""
    module, seen = loaded.model.get_submodule(name), []
    handle = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].double()))
    loaded.model(pixels)
    handle.remove()
    (height, width), step = module.kernel_size, module.stride[0]
    edge = module.padding[0]
    framed = torch.nn.functional.pad(seen[0], (edge,) * 4)
    rows, columns = (
        range(0, framed.shape[2] - height + 1, step),
        range(0, framed.shape[3] - width + 1, step),
    )
    found = [framed[:, :, y : y + height, x : x + width].flatten(1) for y in rows for x in columns]
    return torch.stack(found, 1)


def links(loaded):
    """Names of (the convolutions whose outputs are channels, those that read them), in order."""
    names = [f"{BLOCK}.{matrix.path}" for matrix in loaded.family.matrices]
    return list(zip(names[:-1], names[1:], strict=True))


def parts(entry, index, count):
    """Channels and weight that an entry has for a link."""
    return (
        (entry["items"], entry["weight"])
        if index + 1 == count
        else (entry["groups"], entry["inner"])
    )


@pytest.mark.parametrize("criterion", [name for name in STRUCTURED.built_in if name != "taylor"])
def test_each_link_is_cut_as_the_criterion_says(loaded, pixels, criterion, tmp_path) -> None:
    library = build(loaded, pixels, tmp_path / "library", width_criterion=criterion)
    pairs = links(loaded)
    for index, (before, after) in enumerate(pairs):
        read = patches(loaded, pixels, after)
        rows = read.flatten(0, 1)
        weight = loaded.model.get_parameter(f"{after}.weight")
        structure = Structure(
            output=weight.flatten(1),
            size=weight[0, 0].numel(),
            groups=1,
            inputs=(loaded.model.get_parameter(f"{before}.weight").flatten(1),),
        )
        known = Statistics(
            gram=(rows.T @ rows).float(),
            sequences=SEQUENCES,
            tokens=len(rows),
            sums=rows.sum(0).float(),
            magnitudes=read.abs().mean(1).square().sum(0).sqrt().float(),
        )
        for channels, cut in zip(
            (3, 2), STRUCTURED[criterion].cut(structure, known, [(1, 3), (1, 2)]), strict=True
        ):
            level = Level(channels=channels, bias=STRUCTURED[criterion].adds_bias)
            entry = library.load(f"{BLOCK}.mlp", level)
            items, found = parts(entry, index, len(pairs))
            assert torch.equal(items, cut.items)
            assert found.shape[1:] == (channels, *weight.shape[2:])
            torch.testing.assert_close(found.flatten(1), cut.weight, rtol=1e-3, atol=1e-4)
            if criterion == "obs_structured":
                assert_best(weight.flatten(1).double(), rows, found, items)


def assert_best(dense, rows, found, items) -> None:
    """The weights that are left are the least-squares ones, of the damped problem."""
    gram = rows.T @ rows * (2 / SEQUENCES)
    gram += 0.01 * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    area = found[0, 0].numel()
    stay = (items[:, None] * area + torch.arange(area)).flatten()
    best = dense @ gram[:, stay] @ torch.linalg.inv(gram[stay][:, stay])
    torch.testing.assert_close(found.flatten(1).double(), best, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("criterion", CRITERIA.built_in)
def test_zeros_at_full_width_are_those_of_the_criterion(
    loaded, pixels, criterion, tmp_path
) -> None:
    library = build(loaded, pixels, tmp_path / "library", matrices=True, criterion=criterion)
    for name in {name for pair in links(loaded) for name in pair}:
        rows = patches(loaded, pixels, name).flatten(0, 1)
        known = Statistics(gram=(rows.T @ rows).float(), sequences=SEQUENCES, tokens=len(rows))
        weight = loaded.model.get_parameter(f"{name}.weight")
        level = Level(zeros=weight.numel() // 2)
        (expected,) = CRITERIA[criterion].compress(weight.flatten(1), known, [level])
        found = library.load(name, level)["weight"]
        assert found.shape == weight.shape
        torch.testing.assert_close(found.flatten(1), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("matrices", [False, True])
def test_later_blocks_see_what_the_live_model_computes(loaded, pixels, matrices, tmp_path) -> None:
    path = tmp_path / "library"
    library = build(loaded, pixels, path, matrices=matrices, hessians="propagated")
    levels = library.manifest.recipe.propagated
    dense = answer(loaded.family, loaded.model, pixels)
    mine = {n: level for n, level in levels.items() if n.startswith(BLOCK) and level != DENSE}
    assert any(level.narrow for level in mine.values())
    with LiveModel(loaded, library) as live:
        live.apply(Candidate(tuple(sorted(mine.items()))))
        expected = answer(loaded.family, loaded.model, pixels)
    with compressed(loaded, 1, path, library.manifest, DenseModel(loaded)):
        found = answer(loaded.family, loaded.model, pixels)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found - dense).abs().max() > 1e-3
    assert torch.equal(answer(loaded.family, loaded.model, pixels), dense)

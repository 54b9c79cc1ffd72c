"""Blocks that have parameters in common, such as a transformer that runs in many of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Zamba2Config, Zamba2ForCausalLM, ZambaConfig, ZambaForCausalLM

from evocompress.compression.library.build import build_library
from evocompress.compression.library.gram import collecting
from evocompress.compression.library.manifest import read_manifest
from evocompress.compression.live_model import LiveModel
from evocompress.core.config import DropSpace, LatencyConfig, LibraryConfig, SpaceConfig, WidthSpace
from evocompress.core.errors import ConfigError
from evocompress.core.types import DROP, Level
from evocompress.evaluation.profile import profile
from evocompress.evaluation.proxies.layered import LayeredStates
from evocompress.models.backward import Reader, differentiable, read_gradients
from evocompress.models.families.base import final_states
from evocompress.models.families.derivation.defaults import default_config
from evocompress.models.families.derivation.derived import derive
from evocompress.models.families.derivation.family import Derived
from evocompress.models.families.derivation.tied import first_sharing, shared_with_others
from evocompress.models.families.stand_ins import run_block
from evocompress.models.loading import LoadedModel
from evocompress.space.build import build_space
from evocompress.space.costs import cost_model
from evocompress.testing.costs import counted_decoding
from evocompress.testing.derived import typical_loaded
from evocompress.testing.narrowing import answers, candidate_of, greedy_ids, reference
from evocompress.testing.plain_library import PlainLibrary
from evocompress.testing.probes import random_ids

HEADS = {"model.layers.0.attention": Level(kv_groups=2, group_heads=1)}
CHANNELS = {"model.layers.0.mlp": Level(channels=24)}


@pytest.fixture
def loaded() -> LoadedModel:
    """Four blocks, three of which run one transformer."""
    return of_type("zamba")


def of_type(name: str, **settings: Any) -> LoadedModel:
    types = ["hybrid", "hybrid", "linear_attention", "hybrid"]
    settings = {"num_mem_blocks": 1} | settings if name == "zamba2" else settings
    config = default_config(name, layers_block_type=types, num_hidden_layers=4, **settings)
    found = typical_loaded(config, 4)
    found.model.float()
    found.model.config.dtype = torch.float32
    return found


def test_what_blocks_share_is_seen() -> None:
    blocks = [torch.nn.Linear(2, 2) for _ in range(4)]
    assert first_sharing(blocks) == 0 and not any(shared_with_others(blocks))
    blocks[2].weight = blocks[1].weight
    assert first_sharing(blocks) == 3
    assert shared_with_others(blocks) == [(), ("weight",), ("weight",), ()]


def test_what_one_block_alone_runs_keeps_the_channels() -> None:
    family = of_type("zamba2").family
    assert isinstance(family, Derived)
    reasons = [limit for limit in family.limits if limit.startswith("channels cannot be cut: ")]
    assert len(reasons) == 1 and "one alone runs shared_transformer.feed_forward" in reasons[0]
    assert any("costs are sums over units" in limit for limit in of_zamba_limits())


def of_zamba_limits() -> list[str]:
    """Those of a type whose shared matrices can be narrower."""
    family = of_type("zamba").family
    assert isinstance(family, Derived)
    return family.limits


@pytest.mark.parametrize("name", ["zamba", "zamba2"])
def test_shared_matrices_are_units_of_the_first_block(name: str) -> None:
    loaded = of_type(name)
    family, model = loaded.family, loaded.model
    assert isinstance(family, Derived) and family.sharing == (0, 0, -1, 0)
    units, architecture = family.units(model), family.architecture(model)
    shared = [unit for unit in units if unit.kind == "matrix" and unit.shares]
    assert {unit.block for unit in shared} == {0} and "shared_transf" in shared[0].name
    assert {unit.parent for unit in shared} == {"model.layers.0.attention", "model.layers.0.mlp"}
    assert all(unit.droppable for unit in units if unit.kind == "attention")
    own = sum(map(sum, architecture.own_params)) + sum(unit.numel for unit in units)
    assert architecture.outer_params + own == model.num_parameters()


CANDIDATES = [
    {},
    HEADS,
    CHANNELS,
    HEADS | CHANNELS,
    HEADS | {"model.layers.1.attention": DROP},
    CHANNELS | {"model.layers.0.attention": DROP, "model.layers.2.attention": DROP},
]


@pytest.mark.parametrize("name", ["zamba", "zamba2"])
@pytest.mark.parametrize("levels", CANDIDATES)
def test_costs_are_those_that_are_counted(name: str, levels: dict[str, Level]) -> None:
    """Narrower in all blocks that run it: parameters once, operations and a cache each time."""
    loaded = of_type(name)
    family, model = loaded.family, loaded.model
    if not fits(loaded, levels):
        pytest.skip(f"{name} has no such widths")
    units, architecture = family.units(model), family.architecture(model)
    candidate = candidate_of(levels)
    costs = {
        n: v.item() for n, v in cost_model(units, architecture, length=20).of([candidate]).items()
    }
    with LiveModel(loaded, PlainLibrary(loaded)) as live:
        live.apply(candidate)
        assert costs["decode_flops"] == counted_decoding(model, 20)[0]
        assert costs["kv_bytes"] == counted_decoding(model, 20)[1]


def fits(loaded: LoadedModel, levels: dict[str, Level]) -> bool:
    units = loaded.family.units(loaded.model).by_name
    return all(
        name in units and (level.drop or units[name].narrowable) for name, level in levels.items()
    )


def test_what_is_narrower_is_so_wherever_it_runs(loaded: LoadedModel) -> None:
    library, levels = PlainLibrary(loaded), HEADS | CHANNELS
    expected = answers(loaded, reference(loaded, library, levels))
    with LiveModel(loaded, library) as live:
        live.apply(candidate_of(levels))
        torch.testing.assert_close(answers(loaded), expected)
        ids = random_ids()
        tokens = [greedy_ids(loaded.model, ids, cache=cache) for cache in (True, False)]
        assert torch.equal(*tokens)


@torch.no_grad()
def test_blocks_one_by_one_know_what_they_share(loaded: LoadedModel) -> None:
    """Also where each comes to the device alone."""
    batch, every = random_ids(), [CHANNELS, HEADS | {"model.layers.3.attention": DROP}]
    with LiveModel(loaded, PlainLibrary(loaded)) as live:
        asks = [(candidate_of(levels), [0]) for levels in every]
        found = LayeredStates(live, [batch]).hidden_states(asks)
        for (candidate, _), states in zip(asks, found, strict=True):
            live.apply(candidate)
            expected = loaded.family.hidden_states(loaded.model, batch)
            torch.testing.assert_close(states[0], expected)


@pytest.mark.parametrize("name", ["zamba", "zamba2"])
@pytest.mark.parametrize("gone", [(0,), (1, 3)])
@torch.no_grad()
def test_a_dropped_use_leaves_the_others(name: str, gone: tuple[int, ...]) -> None:
    loaded, batch = of_type(name), random_ids()
    family, model = loaded.family, loaded.model
    state, arguments = family.block_inputs(model, batch)
    for index, block in enumerate(family.blocks(model)):
        state = state if index in gone else run_block(block, state, arguments[index])
    with LiveModel(loaded) as live:
        live.apply(candidate_of({f"model.layers.{index}.attention": DROP for index in gone}))
        found = family.hidden_states(model, batch)
    torch.testing.assert_close(found, final_states(family, model, state))


def test_gradients_are_sums_over_all_uses(loaded: LoadedModel) -> None:
    """However they are computed."""
    units = [
        unit for unit in loaded.family.units(loaded.model) if unit.kind == "matrix" and unit.shares
    ]
    every = {
        f"{unit.name}.weight": loaded.model.get_parameter(f"{unit.name}.weight") for unit in units
    }
    ids = random_ids(batch=1)
    found: list[dict[str, torch.Tensor]] = []
    for by_block in (False, True):
        sums: dict[str, torch.Tensor] = {}
        with differentiable(every):
            losses, readers = (
                [lambda outputs, rows: outputs.values] * 2,
                [reading(sums, 1), reading(sums, 2)],
            )
            read_gradients(loaded, ids, losses, readers, by_block=by_block)
        found.append(sums)
    assert found[0].keys() == found[1].keys() and len(found[0]) == 2 * len(every)
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)


def reading(sums: dict[str, torch.Tensor], number: int) -> Reader:
    def read(name: str, gradient: torch.Tensor) -> None:
        assert f"{number} {name}" not in sums
        sums[f"{number} {name}"] = gradient.clone()

    return read


@pytest.mark.parametrize("hessians", ["dense", "propagated"])
def test_a_library_reads_what_all_uses_read(
    loaded: LoadedModel, hessians: str, tmp_path: Path
) -> None:
    """And what enters later blocks is what it was."""
    ids = torch.randint(3, 320, (4, 20), generator=torch.Generator().manual_seed(3))
    name = "model.layers.0.shared_transf.feed_forward.down_proj"
    wanted = {name: [Level(zeros=500)], "model.layers.3.linear": [Level(zeros=500)]}
    config = LibraryConfig(criterion="sparsegpt", hessians=hessians)
    build_library(loaded, wanted, ids, "ids", config, tmp_path, batch=2)
    record = read_manifest(tmp_path).blocks
    with collecting(readers(loaded, name), {"": ["squares"]}, 20) as sums, torch.no_grad():
        loaded.family.hidden_states(loaded.model, ids)
    found = record[0].inputs["mlp_out"].trace
    assert found == pytest.approx(float(sums[""]["squares"].sum()), rel=1e-4)


def readers(loaded: LoadedModel, name: str) -> dict[str, torch.nn.Module]:
    return {"": loaded.model.get_submodule(name)}


def test_widths_and_drops_of_those_that_share_exclude_each_other(loaded: LoadedModel) -> None:
    units, architecture = (
        loaded.family.units(loaded.model),
        loaded.family.architecture(loaded.model),
    )
    drop = DropSpace(units=("attention",), protect=())
    width = WidthSpace(units=("mlp",), multiple_of=8)
    alone = build_space(units, architecture, SpaceConfig(drop=drop))
    both = build_space(units, architecture, SpaceConfig(drop=drop, width=width))
    assert [unit.name for unit in alone.units] == [f"model.layers.{i}.attention" for i in range(4)]
    assert [unit.name for unit in both.units] == ["model.layers.0.mlp", "model.layers.2.attention"]
    with pytest.raises(ConfigError, match="several blocks share"):
        build_space(units, architecture, SpaceConfig(width=width), adds_bias=True)


def test_no_table_tells_the_time_of_what_is_shared(loaded: LoadedModel) -> None:
    with pytest.raises(ConfigError, match="latency of zamba models"):
        profile(loaded, LatencyConfig(), progress=lambda *_: None)


@pytest.mark.long
def test_the_real_model_has_both_kinds_of_blocks() -> None:
    family = derive(ZambaForCausalLM, ZambaConfig())
    assert [len(kind.tied) for kind in family.kinds] == [0, 9, 9]
    assert family.order[:8] == (0, 0, 1, 0, 0, 0, 0, 2)
    assert {*family.sharing} == {-1, 2}


@pytest.mark.long
def test_transformers_may_take_turns() -> None:
    """The second of two is there once, and so no block shares it."""
    types = ["hybrid", "hybrid", "hybrid", "linear_attention"]
    config = Zamba2Config(layers_block_type=types, num_hidden_layers=4, num_mem_blocks=2)
    family = derive(Zamba2ForCausalLM, config)
    assert family.order == (0, 1, 2, 3) and family.sharing == (0, -1, 0, -1)
    assert [bool(kind.tied) for kind in family.kinds] == [True, False, True, False]

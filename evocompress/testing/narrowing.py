"""What every model family must fulfil when heads and channels are cut, on a tiny random model.

`NarrowingContract` is the base of a test class; give it a ``name`` fixture, one of `NAMES`.
The reference is the dense model in which the cut heads or channels are silenced: the columns of
the output matrix that read them are zero.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from evocompress.compression.live_model import LiveModel
from evocompress.core.architecture import Architecture
from evocompress.core.canonical import canonical, unlike_blocks
from evocompress.core.config import WidthSpace
from evocompress.core.errors import ConfigError
from evocompress.core.types import DROP, Candidate, Level
from evocompress.core.widths import axis_lengths, narrowable
from evocompress.models.families import SubLayerName
from evocompress.models.families.base import matrices_of
from evocompress.models.loading import LoadedModel
from evocompress.space.costs import cost_model
from evocompress.space.levels import width_levels
from evocompress.testing.families import SUBLAYERS
from evocompress.testing.plain_library import PlainLibrary
from evocompress.testing.probes import answer, random_batch, random_ids, silence
from evocompress.testing.staged import require_packages
from evocompress.testing.tiny import tiny_loaded

ROUNDING = 1e-3
"""By how much outputs may differ: norms of what few channels yield enlarge its last digits."""


def candidate_of(levels: Mapping[str, Level]) -> Candidate:
    """A candidate from levels in any order."""
    return Candidate(tuple(sorted(levels.items())))


def widths(architecture: Architecture, sublayer: SubLayerName, *, bias: bool) -> list[Level]:
    """Narrow levels: all numbers of heads of the first block with any, and some of channels.

    Where no block has heads there are none of heads.
    """
    if sublayer == "mlp":
        channels = min(filter(None, architecture.channels))
        return [Level(channels=c, bias=bias) for c in (channels - 1, channels // 3, 1)]
    first = next((index for index, heads in enumerate(architecture.heads) if heads), None)
    if first is None:
        return []
    groups = architecture.kv_heads[first]
    size = architecture.heads[first] // groups
    every = [(g, q) for g in range(1, groups + 1) for q in range(1, size + 1)]
    return [Level(kv_groups=g, group_heads=q, bias=bias) for g, q in every if (g, q) != every[-1]]


def state(model: nn.Module) -> dict[str, Any]:
    """Everything that modules hold, by identity: attributes, children, parameters, their data."""
    held = {
        f"{path}.{name}": id(value)
        for path, module in model.named_modules()
        for place in (vars(module), module._parameters, module._modules)
        for name, value in place.items()
    }
    return held | {name: value.data_ptr() for name, value in model.named_parameters()}


class NarrowingContract:
    """The checks; subclasses are collected by pytest and provide the fixture ``name``."""

    @pytest.fixture
    def loaded(self, name: str) -> LoadedModel:
        """A tiny random model of the family."""
        require_packages(name)
        return tiny_loaded(name)

    @pytest.fixture
    def library(self, loaded: LoadedModel) -> PlainLibrary:
        """Its levels."""
        return PlainLibrary(loaded)

    @pytest.mark.parametrize("sublayer", SUBLAYERS)
    @pytest.mark.parametrize("bias", [False, True])
    def test_a_narrow_sublayer_is_the_silenced_one(
        self, loaded: LoadedModel, library: PlainLibrary, sublayer: SubLayerName, bias: bool
    ) -> None:
        """At every width, in the first block and in another, and with an additional bias."""
        if sublayer not in loaded.family.sublayers:
            pytest.skip(f"blocks without {sublayer}")
        if not getattr(loaded.family, sublayer).narrowable:
            pytest.skip(f"{sublayer} is not narrowable")
        dense = answers(loaded)
        for level in widths(loaded.family.architecture(loaded.model), sublayer, bias=bias):
            levels = named(loaded, {(i, sublayer): level for i in (0, 2)})
            if not levels:
                continue
            expected = answers(loaded, reference(loaded, library, levels))
            with LiveModel(loaded, library) as live:
                live.apply(candidate_of(levels))
                narrow = answers(loaded)
            torch.testing.assert_close(narrow, expected, rtol=ROUNDING, atol=ROUNDING)
            changed, error = (float((narrow - other).abs().max()) for other in (dense, expected))
            assert changed > min(ROUNDING, 1e6 * error)

    def test_parameters_are_really_fewer(self, loaded: LoadedModel, library: PlainLibrary) -> None:
        """The rows and columns of a matrix are those of the heads and channels that stay."""
        cut: dict[Place, Level] = {(1, "attention"): Level(kv_groups=1, group_heads=1)}
        levels = named(loaded, cut | {(1, "mlp"): Level(channels=5)})
        left = {"query": 1, "key": 1, "value": 1, "grouped": 3, "channel": 5, "inner": 5}
        architecture = loaded.family.architecture(loaded.model)
        every = loaded.family.units(loaded.model)
        units = [u for name in levels for u in every.below(name) if u.kind == "matrix"]
        with LiveModel(loaded, library) as live:
            live.apply(candidate_of(levels))
            shapes = {unit.name: unit.shape for unit in loaded.family.units(loaded.model)}
        for unit in units:
            assert unit.shape is not None
            dense = axis_lengths(architecture, unit.block)
            expected = [
                whole * sum(left[axis] for axis in axes) // sum(dense[axis] for axis in axes)
                if narrowable(axes)
                else whole
                for axes, whole in zip((unit.rows, unit.columns), unit.shape, strict=True)
            ]
            assert shapes[unit.name] == tuple(expected)

    def test_what_is_left_is_counted(self, loaded: LoadedModel, library: PlainLibrary) -> None:
        """The predicted parameters of a narrowed model are those that it has."""
        family, model = loaded.family, loaded.model
        costs = cost_model(family.units(model), family.architecture(model))
        levels = {name: replace(level, bias=False) for name, level in mixed(loaded).items()}
        candidate = candidate_of(levels)
        predicted = costs.of([candidate])["params"]
        with LiveModel(loaded, library) as live:
            live.apply(candidate)
            assert predicted == sum(one.numel() for one in model.parameters())

    def test_what_is_not_narrowable_is_refused(self, loaded: LoadedModel) -> None:
        """Where the family declares so, no candidate narrows it, and no space has levels of it."""
        units = loaded.family.units(loaded.model)
        fixed = [unit for unit in units if not unit.narrowable]
        for unit in fixed:
            heads = unit.kind == "attention"
            level = Level(kv_groups=1, group_heads=1) if heads else Level(channels=1)
            with pytest.raises(ConfigError, match="cannot be narrowed"):
                canonical({unit.name: level}, units)
        architecture = loaded.family.architecture(loaded.model)
        width = WidthSpace(multiple_of=1, protect=())
        if not any(unit.narrowable and unit.kind in SUBLAYERS for unit in units):
            pytest.skip("nothing is narrowable")
        levels = width_levels(units, architecture, width, adds_bias=False)
        assert levels and not levels.keys() & {unit.name for unit in fixed}

    @pytest.mark.parametrize("implementation", ["eager", "sdpa"])
    def test_both_sublayers_in_both_kernels(
        self, loaded: LoadedModel, library: PlainLibrary, implementation: str
    ) -> None:
        """Narrow sub-layers beside a dropped one, with either attention kernel."""
        capped = getattr(loaded.model.config, "attn_logit_softcapping", None) is not None
        if capped or not loaded.model._supports_sdpa:
            implementation = "eager"
        if "attention" in loaded.family.sublayers:
            loaded.model.set_attn_implementation(implementation)
        levels = mixed(loaded)
        expected = answers(loaded, reference(loaded, library, levels))
        with LiveModel(loaded, library) as live:
            live.apply(candidate_of(levels))
            torch.testing.assert_close(answers(loaded), expected, rtol=ROUNDING, atol=ROUNDING)

    def test_generation_with_a_cache_is_that_without(
        self, loaded: LoadedModel, library: PlainLibrary
    ) -> None:
        """Greedy tokens, beyond the attention windows, where layers differ in their heads."""
        if not loaded.family.task.causal:
            pytest.skip("only causal language models generate")
        ids = random_ids(batch=2, length=6)
        every = widths(loaded.family.architecture(loaded.model), "attention", bias=False)
        heads: dict[Place, Level] = {}
        if every:
            heads = {(0, "attention"): every[0], (2, "attention"): every[-1]}
        levels = named(loaded, heads | {(1, "mlp"): Level(channels=7)})
        with LiveModel(loaded, library) as live:
            live.apply(candidate_of(levels))
            cached, plain = (greedy_ids(loaded.model, ids, cache=cache) for cache in (True, False))
        assert torch.equal(cached, plain)

    def test_restore_gives_the_very_same_model(
        self, loaded: LoadedModel, library: PlainLibrary
    ) -> None:
        """Tensors, modules and attributes, after every kind of change and back."""
        before, dense = state(loaded.model), answers(loaded)
        with LiveModel(loaded, library) as live:
            for levels in way(loaded):
                live.apply(candidate_of(levels))
                assert (state(loaded.model) != before) == bool(levels)
        assert state(loaded.model) == before
        assert torch.equal(answers(loaded), dense)

    def test_the_way_does_not_matter(self, loaded: LoadedModel, library: PlainLibrary) -> None:
        """Between wide, narrow, other, dropped and merged, each candidate is always the same."""
        way_there = [candidate_of(levels) for levels in way(loaded)]
        direct = []
        for candidate in way_there:
            with LiveModel(loaded, library) as live:
                live.apply(candidate)
                direct.append(answers(loaded))
        with LiveModel(loaded, library) as live:
            for candidate, logits in [*zip(way_there, direct, strict=True)] * 2:
                live.apply(candidate)
                assert torch.equal(answers(loaded), logits)

    @pytest.mark.parametrize("count", [1, 2])
    def test_a_merged_block_is_the_sum_of_differences(
        self, loaded: LoadedModel, library: PlainLibrary, count: int
    ) -> None:
        """Matrices and biases as LaCo's equation says; norms are the block's own."""
        if unlike_blocks(loaded.family.units(loaded.model)):
            pytest.skip("blocks of different shapes cannot be merged")
        family, model = loaded.family, copy.deepcopy(loaded.model)
        blocks = family.blocks(model)
        for matrix in matrices_of(family):
            chain = [dict(b.get_submodule(matrix.path).named_parameters()) for b in blocks]
            for name, first in chain[0].items():
                differences = [chain[k][name] - first for k in range(1, count + 1)]
                first.copy_(first + sum(differences))
        for index in range(1, count + 1):
            for sublayer in family.sublayers:
                silence(family, blocks[index], sublayer)
        with LiveModel(loaded, library) as live:
            live.apply(candidate_of(merged(loaded, count)))
            logits = answers(loaded)
        torch.testing.assert_close(logits, answers(loaded, model), rtol=ROUNDING, atol=ROUNDING)


def answers(loaded: LoadedModel, model: PreTrainedModel | None = None) -> Tensor:
    """The outputs of a model of the same family, by default of the loaded one as it stands."""
    batch = random_batch(loaded.family, loaded.model)
    return answer(loaded.family, model or loaded.model, batch)


def reference(
    loaded: LoadedModel, library: PlainLibrary, levels: Mapping[str, Level]
) -> PreTrainedModel:
    """A copy of the dense model with what is cut or dropped silenced, and the biases added."""
    model: PreTrainedModel = copy.deepcopy(loaded.model)
    experts = loaded.family.units(loaded.model).experts
    for name, level in levels.items():
        unit = library.units[name]
        if level.drop:
            block = loaded.family.blocks(model)[unit.block]
            kind: SubLayerName = "attention" if unit.kind == "attention" else "mlp"
            silence(loaded.family.at(unit.block), block, kind)
            continue
        for owner in [expert.name for expert in experts.get(name, ())] or [name]:
            output = model.get_submodule(library.output(owner))
            for matrix, weight in library.silenced(owner, level).items():
                model.get_parameter(f"{matrix}.weight").copy_(weight)
            if level.bias:
                bias = library.load(owner, level)["bias"]
                output.register_parameter("bias", nn.Parameter(bias, requires_grad=False))
    return model


def mixed(loaded: LoadedModel) -> dict[str, Level]:
    """Levels with both kinds of narrow sub-layers, in one block and beside a dropped one."""
    cut: dict[Place, Level] = {(0, "mlp"): Level(channels=10)}
    cut[1, "mlp"] = Level(channels=40, bias=True)
    if "attention" not in loaded.family.sublayers:
        return named(loaded, cut | {(2, "mlp"): DROP})
    heads = widths(loaded.family.architecture(loaded.model), "attention", bias=False)
    cut |= {(1, "attention"): DROP}
    cut |= {(0, "attention"): heads[-1], (2, "attention"): heads[0]} if heads else {}
    return named(loaded, cut)


Place = tuple[int, SubLayerName]
"""A sub-layer: index of its block, and which."""


def named(loaded: LoadedModel, levels: Mapping[Place, Level]) -> dict[str, Level]:
    """The levels by unit name, without those that the family's sub-layers do not have."""
    droppable = {unit.name for unit in loaded.family.units(loaded.model) if unit.droppable}
    family, architecture = loaded.family, loaded.family.architecture(loaded.model)

    def fits(index: int, kind: SubLayerName, level: Level) -> bool:
        own = family.at(index)
        room = (level.channels or 0) <= architecture.channels[index]
        room &= (level.kv_groups or 0) <= architecture.kv_heads[index]
        cut = room and kind in own.sublayers and getattr(own, kind).narrowable
        return cut if level.narrow else f"{family.block_names[index]}.{kind}" in droppable

    return {
        f"{family.block_names[index]}.{kind}": level
        for (index, kind), level in levels.items()
        if fits(index, kind, level)
    }


def merged(loaded: LoadedModel, count: int) -> dict[str, Level]:
    """The first block with the next ones merged into it."""
    path = loaded.family.layers_path
    dropped = {f"{path}.{i}.{s}": DROP for i in range(1, count + 1) for s in SUBLAYERS}
    return dropped | {f"{path}.0": Level(merge=count)}


def way(loaded: LoadedModel) -> list[dict[str, Level]]:
    """Candidates between which each kind of level follows each other one."""
    if "attention" not in loaded.family.sublayers:
        others: list[dict[Place, Level]]
        others = [{(0, "mlp"): DROP}, {(0, "mlp"): Level(channels=7), (2, "mlp"): DROP}]
        return [mixed(loaded), *(named(loaded, levels) for levels in others), mixed(loaded)]
    heads = widths(loaded.family.architecture(loaded.model), "attention", bias=True)
    narrow: dict[Place, Level] = {}
    if heads:
        narrow |= {(0, "attention"): heads[0], (1, "attention"): heads[-1]}
    return [
        mixed(loaded),
        named(loaded, {(0, "attention"): DROP, (1, "mlp"): Level(channels=40)}),
        named(loaded, narrow | {(2, "mlp"): Level(channels=9)}),
        *([] if unlike_blocks(loaded.family.units(loaded.model)) else [merged(loaded, 1)]),
        mixed(loaded),
    ]


def greedy_ids(model: Any, ids: Tensor, *, cache: bool) -> Tensor:
    """Twelve greedy tokens after `ids` (B, S)."""
    tokens: Tensor = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=12,
        min_new_tokens=12,
        do_sample=False,
        use_cache=cache,
    )
    return tokens

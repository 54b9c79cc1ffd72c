"""A compressed mixture of experts as the dense model of a second round."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from evocompress.compression.live_model import LiveModel
from evocompress.core.errors import ConfigError
from evocompress.core.types import DROP, Candidate, Level
from evocompress.core.units import UnitTree
from evocompress.evaluation.estimates import ESTIMATES
from evocompress.evaluation.estimates.base import Subject
from evocompress.export import materialize, read_record
from evocompress.export.reload import read_checkpoint
from evocompress.models.loading import LoadedModel, load
from evocompress.pipeline.planning.outline import outline
from evocompress.space.costs import cost_model
from evocompress.testing.derived import typical_config, typical_loaded
from evocompress.testing.formats import assert_written, candidate_of, in_memory, with_zeros
from evocompress.testing.plain_library import PlainLibrary
from evocompress.testing.probes import answer, random_batch, random_ids
from evocompress.testing.tiny import MIXTURES, tiny_loaded

OTHERS = {
    "deepseek_v3": "a router that chooses a group of experts first and keeps what it has of all",
    "nemotron_h with experts": "experts without a gate, in a space of their own",
    "dbrx": "matrices of all experts below each other",
    "ernie4_5_moe": "biases of the router in one row of a matrix",
    "gpt_oss": "biases; gate and up projection in turns",
    "llama4_text": "experts with tokens of their own",
}
FEWER, NARROWER = (20, 24), 9
"""Channels of experts after the first round, in turns, and after the second."""

Levels = dict[str, Level]


def dense_model(name: str) -> LoadedModel:
    if name in MIXTURES:
        return tiny_loaded(name, layers=4)
    found = typical_loaded(typical_config(name))
    found.model.float()
    found.model.config.dtype = torch.float32
    return found


def spare(tree: UnitTree, mlp: str) -> list[list[str]]:
    """For each group of experts the names of those that it can do without."""
    least = tree.by_name[mlp].least
    return [[expert.name for expert in own[least:]] for own in tree.groups(mlp)]


def first_levels(loaded: LoadedModel) -> Levels:
    """Experts that differ in number and width by block, and of four mixtures none in the last."""
    tree = loaded.family.units(loaded.model)
    found: Levels = {}
    for place, mlp in enumerate(tree.experts):
        if place == 3:
            found[mlp] = DROP
            continue
        # The first experts go, so that those that are left have other numbers.
        count = [len(own) for own in spare(tree, mlp)]
        if place % 2:
            count = [max(0, each - 1) for each in count]
        for own, gone in zip(tree.groups(mlp), count, strict=True):
            found |= {expert.name: DROP for expert in own[:gone]}
        found[mlp] = Level(channels=FEWER[place % 2])
    return found


def fewer_experts(loaded: LoadedModel) -> Levels:
    """One expert less wherever that can be."""
    tree = loaded.family.units(loaded.model)
    every = {mlp: next((own for own in spare(tree, mlp) if own), []) for mlp in tree.experts}
    return {own[0]: DROP for own in every.values() if own}


def second_levels(loaded: LoadedModel) -> Levels:
    """The same, and all narrower."""
    every = loaded.family.units(loaded.model).experts
    return fewer_experts(loaded) | {mlp: Level(channels=NARROWER) for mlp in every}


def named(loaded: LoadedModel, levels: Levels) -> Candidate:
    prefix = f"{loaded.family.layers_path}."
    return candidate_of(loaded, {n.removeprefix(prefix): level for n, level in levels.items()})


def left_of(dense: LoadedModel, levels: Levels, name: str) -> str:
    """What a unit of the second round was called in the first."""
    mlp, within, number = name.rpartition(".experts.")
    if not within:
        return name
    prefix = f"{mlp}.experts."
    units = (unit.name for unit in dense.family.units(dense.model) if unit.kind == "expert")
    kept = [unit for unit in units if unit.startswith(prefix) and levels.get(unit) != DROP]
    return kept[int(number)]


class Round:
    """A model, its first checkpoint and what that is again."""

    def __init__(self, name: str, folder: Path) -> None:
        self.dense = dense_model(name)
        self.levels = first_levels(self.dense)
        self.candidate = named(self.dense, self.levels)
        library = PlainLibrary(self.dense)
        materialize(self.dense, library, self.candidate, folder, format="hf")
        self.loaded = load(str(folder), device="cpu")

    def both(self, second: Levels) -> Candidate:
        """What both rounds do, as a candidate of the model before them."""
        here = {left_of(self.dense, self.levels, n): level for n, level in second.items()}
        return named(self.dense, self.levels | here)


SHORT = ("qwen2_moe", "deepseek_v3")
TIERS = [
    name if name in SHORT else pytest.param(name, marks=pytest.mark.long)
    for name in (*MIXTURES, *OTHERS)
]


@pytest.fixture(scope="module", params=TIERS)
def round_of(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Round:
    return Round(request.param, tmp_path_factory.mktemp("mixture") / "first")


def test_it_is_what_was_written(round_of: Round) -> None:
    dense, loaded = round_of.dense, round_of.loaded
    batch = random_batch(loaded.family, loaded.model)
    expected = in_memory(dense, round_of.candidate, batch)
    torch.testing.assert_close(answer(loaded.family, loaded.model, batch), expected)
    before, tree = dense.family.units(dense.model), loaded.family.units(loaded.model)
    assert [*tree.experts] == [mlp for mlp in before.experts if round_of.levels.get(mlp) != DROP]
    counts = {mlp: len(own) for mlp, own in tree.experts.items()}
    assert counts == {
        mlp: sum(round_of.levels.get(expert.name) != DROP for expert in before.experts[mlp])
        for mlp in counts
    }
    modules = dict(loaded.model.named_modules())
    for unit in tree:
        if unit.kind == "matrix":
            assert unit.shape == tuple(modules[unit.name].weight.shape)


def test_its_costs_are_those_of_both_rounds(round_of: Round) -> None:
    dense, loaded = round_of.dense, round_of.loaded
    costs, before = (
        cost_model(one.family.units(one.model), one.family.architecture(one.model), length=16)
        for one in (loaded, dense)
    )
    assert costs.of([Candidate()])["params"].item() == loaded.model.num_parameters()
    for second in ({}, fewer_experts(loaded), second_levels(loaded)):
        found = costs.of([named(loaded, second)])
        expected = before.of([round_of.both(second)])
        assert {n: v.item() for n, v in found.items()} == {n: v.item() for n, v in expected.items()}


def test_fewer_experts_are_those_of_both_rounds(round_of: Round) -> None:
    dense, loaded = round_of.dense, round_of.loaded
    batch, second = random_batch(loaded.family, loaded.model), fewer_experts(loaded)
    found = in_memory(loaded, named(loaded, second), batch)
    torch.testing.assert_close(found, in_memory(dense, round_of.both(second), batch))


def test_a_second_round_is_written_and_read_for_a_third(round_of: Round, tmp_path: Path) -> None:
    loaded = round_of.loaded
    batch = random_batch(loaded.family, loaded.model)
    candidate = named(loaded, second_levels(loaded))
    found = in_memory(loaded, candidate, batch)
    out = materialize(loaded, PlainLibrary(loaded), candidate, tmp_path / "second")
    assert_written(out, loaded, candidate)
    again = read_checkpoint(out, loaded.model)
    torch.testing.assert_close(answer(loaded.family, again, batch), found)
    costs = cost_model(loaded.family.units(loaded.model), loaded.family.architecture(loaded.model))
    record, predicted = read_record(out), costs.of([candidate])
    assert record.format == "hf"
    assert record.measured == {name: predicted[name].item() for name in record.measured}
    third = load(str(out), device="cpu")
    torch.testing.assert_close(answer(third.family, third.model, batch), found)
    assert third.model.num_parameters() == record.measured["params"]


def test_zeros_are_counted(round_of: Round, tmp_path: Path) -> None:
    loaded = round_of.loaded
    candidate = candidate_of(loaded, with_zeros(loaded, {}))
    out = materialize(loaded, PlainLibrary(loaded), candidate, tmp_path / "second")
    costs = cost_model(loaded.family.units(loaded.model), loaded.family.architecture(loaded.model))
    record, predicted = read_record(out), costs.of([candidate])
    assert record.measured == {name: predicted[name].item() for name in record.measured}


def test_each_group_keeps_enough(round_of: Round) -> None:
    loaded = round_of.loaded
    tree = loaded.family.units(loaded.model)
    mlp = [*tree.experts][-1]
    own = tree.groups(mlp)[-1]
    gone = own[: len(own) - tree.by_name[mlp].least + 1]
    with pytest.raises(ConfigError, match=f"'{mlp}' would keep"):
        named(loaded, {expert.name: DROP for expert in gone})


@pytest.mark.parametrize("kind", ["routing_frequency", "expert_output_error"])
def test_estimates_of_experts_are_those_of_the_first_rounds_candidate(
    round_of: Round, kind: str
) -> None:
    dense, loaded, ids = round_of.dense, round_of.loaded, [random_ids()[:1, :20]]
    live = LiveModel(dense, PlainLibrary(dense))
    expected = ESTIMATES[kind](Subject(live, ids, round_of.candidate))
    live.restore()
    found = ESTIMATES[kind](Subject(LiveModel(loaded), ids, Candidate()))
    renamed = {left_of(dense, round_of.levels, name): row for name, row in found.items()}
    assert renamed.keys() == expected.keys()
    tree = loaded.family.units(loaded.model)
    # Without one of as many as a token uses nothing is left to choose.
    spared = 0 if kind == "routing_frequency" else 1
    active = tree.by_name[[*tree.experts][0]].active
    counts = map(len, tree.experts.values())
    assert len(renamed) == sum(count for count in counts if count - spared >= active)
    for name, row in renamed.items():
        assert row == pytest.approx(expected[name], rel=1e-3, abs=1e-6)


def test_it_can_be_planned_with(round_of: Round) -> None:
    loaded = round_of.loaded
    planned = outline(loaded.source)
    assert planned.family.units(planned.model) == loaded.family.units(loaded.model)
    own = loaded.family.architecture(loaded.model)
    assert planned.family.architecture(planned.model) == own

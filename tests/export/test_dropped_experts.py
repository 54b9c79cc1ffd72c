"""Checkpoints of format ``hf`` whose mixtures have lost experts, by how a type holds these."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from export_cases import write

import evocompress.hf  # noqa: F401
from evocompress.core.errors import ConfigError
from evocompress.core.types import DROP, Candidate, Level
from evocompress.core.units import UnitTree
from evocompress.export import read_record
from evocompress.models.loading import LoadedModel
from evocompress.space.costs import cost_model
from evocompress.testing.derived import typical_config, typical_loaded
from evocompress.testing.formats import assert_written, candidate_of, reload, with_zeros

HELD = {
    "deepseek_v3": "a router that chooses a group of experts first",
    "nemotron_h with experts": "experts without a gate, in a space of their own",
    "dbrx": "matrices of all experts below each other",
    "afmoe": "a dense first layer; biases of the router as a parameter",
    "ernie4_5_moe": "the same in one row of a matrix",
    "gemma4_text with experts": "beside a dense MLP, in the block itself",
    "gpt_oss": "biases; gate and up projection in turns",
}


@pytest.fixture(params=HELD)
def loaded(request: pytest.FixtureRequest) -> LoadedModel:
    found = typical_loaded(typical_config(request.param))
    found.model.float()
    found.model.config.dtype = torch.float32
    return found


def mixture_of(loaded: LoadedModel) -> tuple[UnitTree, str]:
    """The units, and the name of the last MLP that is a mixture."""
    units = loaded.family.units(loaded.model)
    return units, [*units.experts][-1]


def fewest(loaded: LoadedModel) -> dict[str, Level]:
    """A mixture with as few experts in each group as can be, narrowed."""
    units, name = mixture_of(loaded)
    least = units.by_name[name].least
    gone = [expert.name for own in units.groups(name) for expert in own[: len(own) - least]]
    prefix = f"{loaded.family.layers_path}."
    return {n.removeprefix(prefix): DROP for n in gone} | {
        name.removeprefix(prefix): Level(channels=7)
    }


def test_they_compute_what_was_measured(loaded: LoadedModel, tmp_path: Path) -> None:
    candidate = candidate_of(loaded, fewest(loaded))
    out = write(loaded, candidate, tmp_path / "out", "hf")
    assert_written(out, loaded, candidate)
    record, family = read_record(out), loaded.family
    costs = cost_model(family.units(loaded.model), family.architecture(loaded.model))
    found = costs.of([candidate])
    assert record.measured == {name: found[name].item() for name in record.measured}
    assert reload(out).num_parameters() == record.measured["params"]
    assert record.measured["params"] < costs.of([Candidate()])["params"].item()


def test_each_group_keeps_enough(loaded: LoadedModel) -> None:
    units, name = mixture_of(loaded)
    *_, group = units.groups(name)
    one_more = {expert.name: DROP for expert in group[: len(group) - units.by_name[name].least + 1]}
    prefix = f"{loaded.family.layers_path}."
    levels = fewest(loaded) | {n.removeprefix(prefix): level for n, level in one_more.items()}
    with pytest.raises(ConfigError, match=f"'{name}' would keep"):
        candidate_of(loaded, levels)


@pytest.mark.parametrize("form", ["hf", "stock", "padded"])
def test_zeros_in_experts_are_measured_as_predicted(
    loaded: LoadedModel, form: str, tmp_path: Path
) -> None:
    candidate = candidate_of(loaded, with_zeros(loaded, {}))
    record = read_record(write(loaded, candidate, tmp_path / "out", form))
    costs = cost_model(loaded.family.units(loaded.model), loaded.family.architecture(loaded.model))
    found = costs.of([candidate])
    assert record.measured == {name: found[name].item() for name in record.measured}

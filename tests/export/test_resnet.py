"""Checkpoints of ResNets, whose layers have their own widths or are left out of their stages."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForImageClassification

from evocompress.core.canonical import canonical
from evocompress.core.errors import ExportError
from evocompress.core.types import DROP, Candidate, Level
from evocompress.evaluation.heldout import count, count_flops
from evocompress.export import FORMATS, choose_format, materialize, read_record
from evocompress.models.loading import LoadedModel
from evocompress.space.costs import cost_model
from evocompress.testing.formats import assert_written
from evocompress.testing.plain_library import PlainLibrary
from evocompress.testing.staged import require_packages
from evocompress.testing.tiny import tiny_resnet

STAGES = "resnet.encoder.stages"
CASES: dict[str, dict[str, Level]] = {
    "dense": {},
    "shorter": {"1.layers.1": DROP},
    "uneven": {
        "0.layers.0.mlp": Level(channels=3),
        "1.layers.0.mlp": Level(channels=2),
        "1.layers.2.mlp": DROP,
    },
    "no first stage": {"0.layers.0": DROP},
    "biased": {"1.layers.1.mlp": Level(channels=3, bias=True)},
}
UNLIKE = sorted(name for name in FORMATS.built_in if not hasattr(FORMATS[name], "like"))
EXPRESSIBLE = {"stock": {"dense", "shorter"}, "hf": set(CASES)}


@pytest.fixture(params=["basic", "bottleneck"])
def loaded(request: pytest.FixtureRequest) -> LoadedModel:
    require_packages("resnet")
    return tiny_resnet(request.param)


def candidate_of(loaded: LoadedModel, case: str) -> Candidate:
    """A case with zeros in every matrix that is left."""
    units = loaded.family.units(loaded.model)
    zeros = {unit.name: Level(zeros=unit.numel // 3) for unit in units if unit.kind == "matrix"}
    levels = {f"{STAGES}.{name}": level for name, level in CASES[case].items()}
    return canonical(levels if case == "dense" else zeros | levels, units)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("format", UNLIKE)
def test_it_is_written_or_refused_by_name(
    loaded: LoadedModel, case: str, format: str, tmp_path: Path
) -> None:
    candidate = candidate_of(loaded, case)
    if case not in EXPRESSIBLE.get(format, ()):
        with pytest.raises(ExportError, match="resnet models|encoder.stages"):
            choose_format(loaded, candidate, format)
        return
    out = materialize(loaded, PlainLibrary(loaded), candidate, tmp_path / "out", format=format)
    assert_written(out, loaded, candidate)


def test_the_files_hold_what_the_costs_say(loaded: LoadedModel, tmp_path: Path) -> None:
    candidate = candidate_of(loaded, "uneven")
    out = materialize(loaded, PlainLibrary(loaded), candidate, tmp_path / "out")
    model = AutoModelForImageClassification.from_pretrained(out)
    measured = read_record(out).measured
    assert measured["params"] == count(model).parameters
    costs = cost_model(loaded.family.units(loaded.model), loaded.family.architecture(loaded.model))
    predicted = {name: values.item() for name, values in costs.of([candidate]).items()}
    assert {name: predicted[name] for name in measured} == measured
    assert predicted["flops"] == count_flops(model, 1, loaded.family.task)

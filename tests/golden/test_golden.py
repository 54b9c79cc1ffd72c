"""Small searches come out as they were recorded.

Where the record was made, all of it is equal to the last bit. Elsewhere sums of floats differ, so
the searcher is given the recorded answers, after which nothing depends on the processor.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load as load_values

from evocompress import api
from tests.golden.cases import CASES
from tests.golden.recording import load, materialized, replay, searched

SAME = 5e-3
"""How far values and sums may differ elsewhere, relatively.

Without vector instructions (ATEN_CPU_CAPABILITY=default) it is 2e-6, and 9e-4 for the embeddings,
whose propagated Hessians carry rounding on; other libraries may do a little more. A wrong weight
or token changes values by percents.
"""

NOTHING = 1e-6
"""What the value of the dense model may be elsewhere, which is 0 where it was recorded."""

ON_RAY = CASES[0]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def made(request, tmp_path_factory):
    """A case, its folder, its record, and what the search finds now."""
    case, home = request.param, tmp_path_factory.mktemp(request.param.name)
    return case, home, load(case.name), searched(api.search(case.config(home)))


def test_a_search_on_the_same_machine_is_the_recorded_one(made):
    _, _, known, anew = made
    if anew.machine != known.machine:
        pytest.skip(f"recorded on another machine: {known.machine}, this is {anew.machine}")
    for part in ("journal", "winner", "front"):
        assert json.dumps(getattr(anew, part)) == json.dumps(getattr(known, part)), part
    assert anew.estimates == known.estimates


def test_values_of_the_recorded_candidates_are_about_the_same(made):
    _, _, known, anew = made
    common = known.values.keys() & anew.values.keys()
    assert common, "the first request is another one"
    for key in common:
        assert anew.values[key] == pytest.approx(known.values[key], rel=SAME, abs=NOTHING), key


def test_estimates_are_about_the_recorded_ones(made):
    _, _, known, anew = made
    common = known.estimates.keys() & anew.estimates.keys()
    assert bool(common) == bool(known.estimates), "the first estimate is another one"
    for name in common:
        ours, theirs = (load_values(kept.estimates[name])["values"] for kept in (anew, known))
        np.testing.assert_allclose(ours, theirs, rtol=SAME, atol=SAME * np.abs(theirs).max())


def test_recorded_answers_lead_to_the_recorded_winner_and_its_checkpoint(made):
    case, home, known, anew = made
    replayed = materialized(replay(case, home, known), case.config(home).folder)
    assert replayed.in_any_order == [json.dumps(anew.journal[0]), *known.in_any_order[1:]]
    for part in ("winner", "front", "estimates"):
        assert getattr(replayed, part) == getattr(known, part), part
    assert replayed.tensors.keys() == known.tensors.keys()
    for name, theirs in known.tensors.items():
        ours = replayed.tensors[name]
        assert (ours["shape"], ours["dtype"]) == (theirs["shape"], theirs["dtype"]), name
        for sums in ("sum", "absolute"):
            assert abs(ours[sums] - theirs[sums]) <= SAME * theirs["absolute"], name
    if anew.machine == known.machine:
        assert replayed.tensors == known.tensors


@pytest.mark.cluster
@pytest.mark.smoke
def test_two_workers_on_ray_find_the_record_of_one_process(tmp_path):
    pytest.importorskip("ray")
    config = ON_RAY.config(tmp_path, executor="ray", ray={"workers": 2})
    known, anew = load(ON_RAY.name), searched(api.search(config))
    if anew.machine == known.machine:
        assert anew.in_any_order == known.in_any_order
        assert (anew.winner, anew.front) == (known.winner, known.front)
    for key in known.values.keys() & anew.values.keys():
        assert anew.values[key] == pytest.approx(known.values[key], rel=SAME, abs=NOTHING), key

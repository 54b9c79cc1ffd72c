"""The shipped runs load, build their spaces and searchers, and keep what they promise."""

from pathlib import Path

import numpy as np
import pytest

import evocompress
from evocompress.config_file import load_config, validate
from evocompress.search import SEARCHERS
from evocompress.search.base import Problem
from evocompress.space import build_space
from evocompress.testing.decoders import SMOLLM2_135M
from evocompress.types import Evaluate, Pool

FOLDER = Path(__file__).parent.parent / "search_spaces"
FILES = sorted(FOLDER.glob("*.yaml"))
DEMO = Path(evocompress.__file__).with_name("demo.yaml")
LARGEST_LIBRARY = 2.2e9


def space_of(config):
    return build_space(SMOLLM2_135M.units(), SMOLLM2_135M.architecture(), config.space)


def pool_of(calibration):
    tokens = calibration.micro_batch * calibration.length
    return Pool((tokens,) * (calibration.search_sequences // calibration.micro_batch))


def test_all_are_there():
    assert {path.stem for path in FILES} >= {
        *(f"smollm2_sparsity_{percent}" for percent in (50, 60, 70)),
        *(f"smollm2_depth_{percent}" for percent in (15, 25, 35)),
    }


@pytest.mark.parametrize("path", [*FILES, DEMO], ids=lambda path: path.stem)
def test_search_starts(path):
    config = load_config(path)
    cls = SEARCHERS[config.search.name]
    settings = validate(cls.Settings, config.search.settings, path.name)
    problem = Problem(space_of(config), pool_of(config.calibration), config.search.tokens)
    requests = cls(problem, settings, np.random.default_rng(config.seed)).ask()
    assert all(isinstance(request, Evaluate) for request in requests)
    assert len(requests) == config.search.settings.get("initial", settings.offspring)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_uniform_candidate_removes_what_the_name_says(path):
    space = space_of(load_config(path))
    removed = int(path.stem.rsplit("_", 1)[1]) / 100
    cost = "matrix_nonzeros" if "sparsity" in path.stem else "body_params"
    kept = space.costs(space.uniform()[None])[cost][0] / space.cost_model.dense()[cost]
    assert 1 - removed - 0.035 < kept <= 1 - removed


@pytest.mark.parametrize("path", [*FILES, DEMO], ids=lambda path: path.stem)
def test_library_fits_the_stated_disk_space(path):
    space = space_of(load_config(path))
    weights = sum(
        unit.numel * len(levels)
        for unit, levels in zip(space.units, space.levels, strict=True)
        if unit.kind == "matrix"
    )
    assert weights * SMOLLM2_135M.architecture().dtype_bytes < LARGEST_LIBRARY

"""The shipped runs load, build their spaces and searchers, and keep what they promise."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import evocompress
from evocompress.compression.criteria import STRUCTURED
from evocompress.core.config_file import load_config, validate
from evocompress.core.requests import Pool
from evocompress.pipeline.sweep import check_groups, load_sweep, samples
from evocompress.search import SEARCHERS
from evocompress.search.auto.auto import Auto
from evocompress.search.base import Problem
from evocompress.space import sampling
from evocompress.space.build import build_space
from evocompress.space.costs.latency import Conditions, LatencyTable, Phase
from evocompress.testing.decoders import MIXTRAL, SMOLLM2_135M
from evocompress.testing.searchers import Separable, run

FOLDER = Path(__file__).parents[2] / "search_spaces"
SWEEPS = sorted(FOLDER.glob("*sweep*.yaml"))
FILES = sorted(set(FOLDER.glob("*.yaml")) - set(SWEEPS))
PLAIN = [path for path in FILES if path.stem.split("_")[1] in ("sparsity", "depth")]
DEMO = Path(evocompress.__file__).parent / "cli" / "demo.yaml"
KINDS = ("sparsity_50", "depth_25", "width_70", "uniform_width_70", "joint_50", "latency70")
AUTO = [*(FOLDER / f"smollm2_{kind}.yaml" for kind in KINDS), DEMO]
LARGEST_LIBRARY = 2.2e9


def space_of(config):
    model = MIXTRAL if "Mixtral" in config.model.source else SMOLLM2_135M
    adds_bias = STRUCTURED[config.library.width_criterion].adds_bias
    return build_space(
        model.units(),
        model.architecture(),
        config.space,
        adds_bias=adds_bias,
        latency=proportional_table(),
    )


def proportional_table():
    """A latency table in which a part costs as many seconds as it has weights."""
    heads = {(g, q): 576.0 * 64 * (2 * g * q + 2 * g) for g in range(1, 4) for q in range(1, 4)}
    mlp = {channels: 3.0 * 576 * channels for channels in range(128, 1537, 128)}
    dense = 30 * (heads[3, 3] + mlp[1536])
    prefill = Phase(1, 512, dense, 0.0, heads, mlp)
    made = Conditions("none", "bfloat16", 1, "sdpa", "", "", (1, 512), (1, 128))
    return LatencyTable(made, prefill, replace(prefill, tokens=128))


def pool_of(calibration):
    tokens = calibration.micro_batch * calibration.length
    return Pool((tokens,) * (calibration.search_sequences // calibration.micro_batch))


def test_all_are_there():
    assert {path.stem for path in FILES} >= {
        *(f"smollm2_sparsity_{percent}" for percent in (50, 60, 70)),
        *(f"smollm2_depth_{percent}" for percent in (15, 25, 35)),
        *("smollm2_width_70", "smollm2_uniform_width_70", "smollm2_joint_50"),
        *("smollm2_latency70", "smollm2_latency_front", "mixtral_experts"),
    }
    assert {path.stem for path in SWEEPS} == {"smollm2_sweep"}


@pytest.mark.parametrize("path", [*FILES, DEMO], ids=lambda path: path.stem)
def test_search_starts(path):
    config = load_config(path)
    cls = SEARCHERS[config.search.name]
    settings = validate(cls.Settings, config.search.settings, path.name)
    problem = Problem(space_of(config), pool_of(config.calibration), config.search.tokens)
    requests = cls(problem, settings, np.random.default_rng(config.seed)).ask()
    genes = problem.space.encoding
    estimate = "block_influence" if genes.droppable.size else "curvature"
    wanted = "fluctuation" if config.search.name == "nsga2" else estimate
    assert [request.kind for request in requests] == [wanted]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_trial_of_a_sweep_starts_and_keeps_its_budget(path):
    sweep = load_sweep(path)
    check_groups(sweep)
    trials = list(samples(sweep))
    assert 2 <= len(trials) <= 20 and len({trial.name for trial in trials}) == len(trials)
    for config in (trial.config for trial in trials):
        space, name = space_of(config), config.search.name
        settings = validate(SEARCHERS[name].Settings, config.search.settings, path.name)
        problem = Problem(space, pool_of(config.calibration), config.search.tokens)
        assert SEARCHERS[name](problem, settings, np.random.default_rng(config.seed)).ask()
        assert space.feasible(sampling.uniform(space)[None])[0]


@pytest.mark.parametrize("path", AUTO, ids=lambda path: path.stem)
def test_search_ends_in_a_better_candidate_within_its_tokens(path):
    config = load_config(path)
    space, pool = space_of(config), pool_of(config.calibration)
    tokens = config.search.tokens // 8
    rng = np.random.default_rng(config.seed)
    searcher = Auto(Problem(space, pool, tokens), Auto.Settings(), rng)
    objective = Separable.of(space, noise=0.01)
    steps = run(searcher, objective)
    asked = sum(pool.requested(request) for requests, _ in steps for request in requests)
    assert 0.5 * tokens < asked <= tokens
    best = searcher.incumbent().candidate
    assert space.feasible(space.genome(best)[None])[0]
    assert objective.value(best) < objective.value(space.candidate(sampling.uniform(space)))


@pytest.mark.parametrize("path", PLAIN, ids=lambda path: path.stem)
def test_uniform_candidate_removes_what_the_name_says(path):
    space = space_of(load_config(path))
    removed = int(path.stem.rsplit("_", 1)[1]) / 100
    cost = "matrix_nonzeros" if "sparsity" in path.stem else "body_params"
    kept = space.costs(sampling.uniform(space)[None])[cost][0] / space.cost_model.dense()[cost]
    assert 1 - removed - 0.035 < kept <= 1 - removed


@pytest.mark.parametrize("path", [*FILES, DEMO], ids=lambda path: path.stem)
def test_library_fits_the_stated_disk_space(path):
    space = space_of(load_config(path))
    rows = SMOLLM2_135M.architecture()
    stored = 0
    for members, levels in zip(space.encoding.members, space.levels, strict=True):
        for unit in members:
            stored += sum(weights(unit, level, rows) for level in levels)
    assert stored * rows.dtype_bytes < LARGEST_LIBRARY


def weights(unit, level, architecture):
    """How many a library stores of a unit at a level: a matrix, or a narrowed output matrix."""
    if level.narrow:
        heads = (level.kv_groups or 0) * (level.group_heads or 0)
        return architecture.hidden * (level.channels or heads * architecture.head_dim)
    return unit.numel

"""From a sweep to ordinary runs."""

import re

import pytest

from evocompress.core.errors import ConfigError
from evocompress.pipeline.sweep import SweepConfig, check_groups, samples
from evocompress.pipeline.sweep.trials import group_of, planned, size_of, trial_name, trial_of

RUN = {
    "model": {"source": "some/model"},
    "space": {"width": {}, "budget": {"params": 0.9, "flops": 0.9}},
    "search": {"name": "evopress", "generations": 3},
    "executor": "ray",
}
GRID = {
    "model.source": ["models/a", "models/b"],
    "space.budget": [{"params": 0.7}, {"params": 0.5}],
    "seed": {"low": 0, "high": 1},
}


def sweep_of(vary=GRID, **parts):
    return SweepConfig.model_validate({"name": "many", "run": RUN, "vary": vary} | parts)


def test_a_grid_is_every_combination_once():
    sweep = sweep_of()
    configs = [trial.config for trial in samples(sweep)]
    found = [(c.model.source, c.space.budget["params"], c.seed) for c in configs]
    assert found == [
        (m, b, s) for m in ("models/a", "models/b") for b in (0.7, 0.5) for s in (0, 1)
    ]
    assert len({config.folder for config in configs}) == 8 == size_of(sweep)
    assert list(planned(sweep)) == [config.name for config in configs]


def test_a_sub_tree_takes_the_place_of_the_old_one_and_its_keys_come_after_it():
    settings = {
        "search.generations": 9,
        "search": {"name": "random"},
        "space.budget": {"params": 0.5},
    }
    config = trial_of(sweep_of(), settings).config
    assert config.space.budget == {"params": 0.5}
    assert config.search.name == "random" and config.search.settings == {"generations": 9}


def test_a_trial_is_a_run_in_one_process_with_the_sweeps_threads():
    config = trial_of(sweep_of(ray={"cpus": 3, "address": "auto"}), {"seed": 1}).config
    assert config.executor == "local" and config.threads == 3 and config.ray.address is None
    assert config.folder.parent == sweep_of().folder
    own = sweep_of(run=RUN | {"threads": 2})
    assert trial_of(own, {"seed": 1}).config.threads == 2


@pytest.mark.parametrize("where", ["run", "vary"])
def test_searches_that_choose_after_a_healing_are_not_compared(where):
    last = {"candidates": 2, "tokens": 512}
    if where == "run":
        sweep = sweep_of({"seed": [0]}, run=RUN | {"search": RUN["search"] | {"heal_last": last}})
    else:
        sweep = sweep_of({"search.heal_last": [last]})
    with pytest.raises(ConfigError, match=r"search\.heal_last: a sweep compares searches by the"):
        list(samples(sweep))


def test_libraries_are_shared_by_all_that_want_the_same_one():
    paths = {}
    for trial in samples(sweep_of()):
        paths.setdefault(trial.config.model.source, set()).add(trial.config.library.path)
    assert [len(own) for own in paths.values()] == [1, 1] and len(set.union(*paths.values())) == 2
    base = trial_of(sweep_of(), {"seed": 0}).config.library.path
    for key, value, same in [
        ("search.generations", 7, True),
        ("space.budget.params", 0.3, True),
        ("library.cache_mib", 7, True),
        ("library.width_criterion", "wanda", False),
        ("calibration.seed", 1, False),
        ("calibration.bos", "auto", True),
        ("calibration.bos", True, False),
        ("calibration.field", None, True),
        ("calibration.field", "body", False),
        ("space.width.multiple_of", 64, False),
        ("model.dtype", "float32", False),
    ]:
        path = trial_of(sweep_of(), {key: value}).config.library.path
        assert (path == base) == same, key


def test_a_library_that_the_run_names_stays():
    sweep = sweep_of(run=RUN | {"library": {"path": "elsewhere"}})
    assert str(trial_of(sweep, {"seed": 0}).config.library.path) == "elsewhere"


@pytest.mark.parametrize(
    ("settings", "other"),
    [
        ({"model.source": "here/model"}, {"model.source": "there/model"}),
        ({"space.budget": {"params": 0.5}}, {"space.budget": {"flops": 0.5}}),
        ({"seed": 1}, {"search.seed": 1}),
        ({"search.name": "a" * 100}, {"search.name": "a" * 99}),
    ],
)
def test_names_tell_settings_apart_and_are_folder_names(settings, other):
    assert trial_name(settings) != trial_name(other)
    for each in (settings, other):
        assert re.fullmatch(r"\w[\w.-]{1,79}", trial_name(each))


def test_of_optunas_space_every_value_is_tried_once_before_it_begins():
    vary = {"seed": [3, 4, 5], "space.budget.params": {"low": 0.25, "high": 0.75}}
    sweep = sweep_of(vary, mode="optuna", trials=50)
    found = [(t.config.seed, t.config.space.budget["params"]) for t in samples(sweep)]
    assert set(found) == {(3, 0.25), (4, 0.25), (5, 0.25), (3, 0.75)}
    assert planned(sweep) == {} and size_of(sweep) == 50


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        ({"seedd": [0]}, "unknown key 'seedd': did you mean 'seed'"),
        ({"calibration.lenght": [8]}, "unknown key 'calibration.lenght': did you mean 'length'"),
        ({"space.width.multiple_of": [8, 0]}, "space.width.multiple_of"),
        ({"model.source.path": ["a"]}, "'source' is not a mapping"),
    ],
)
def test_a_key_that_no_run_has_is_one_clear_line(vary, message):
    with pytest.raises(ConfigError, match=message) as caught:
        list(samples(sweep_of(vary)))
    assert "\n" not in str(caught.value) and str(caught.value).startswith("trial ")


def test_only_what_is_equally_hard_is_compared():
    base = {"model.source": "a", "space.budget": {"params": 0.5}, "seed": 0}
    same = [{"seed": 1}, {"search.offspring": 3}, {"library.criterion": "wanda"}]
    other = [{"model.source": "b"}, {"space.budget": {"params": 0.6}}, {"proxy.kind": "js"}]
    assert len({group_of(base | change) for change in [{}, *same[:1]]}) == 1
    assert all(group_of(base | change) == group_of(base) for change in same)
    assert all(group_of(base | change) != group_of(base) for change in other)


@pytest.mark.parametrize(
    ("vary", "parts"),
    [
        ({"space.budget": [{"params": 0.5}, {"params": 0.6}]}, {}),
        (
            {"space.budget.params": {"low": 0.5, "high": 0.6}, "seed": [0, 1]},
            {"mode": "optuna", "trials": 4},
        ),
    ],
)
def test_early_stopping_without_anything_to_compare_is_refused(vary, parts):
    asha = {"grace_tokens": 10, "max_tokens": 100}
    with pytest.raises(ConfigError, match="asha compares trials"):
        check_groups(sweep_of(vary, asha=asha, **parts))
    check_groups(sweep_of(vary, **parts))
    check_groups(sweep_of(asha=asha))

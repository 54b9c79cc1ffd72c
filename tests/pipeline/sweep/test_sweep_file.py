"""The sweep file: what it may say, and what is refused before anything is begun."""

import pytest
import yaml

from evocompress.core.config_file import dump_config
from evocompress.core.errors import ConfigError
from evocompress.pipeline.sweep import load_sweep
from evocompress.pipeline.sweep.config import Range

RUN = {
    "model": {"source": "some/model"},
    "space": {"sparsity": {"target": 0.5}},
    "search": {"name": "evopress", "generations": 3},
}


@pytest.fixture
def write(tmp_path):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(RUN))

    def write(**parts):
        path = tmp_path / "many.yaml"
        path.write_text(yaml.safe_dump({"run": "run.yaml", "vary": {"seed": [0, 1]}} | parts))
        return path

    return write


def test_the_run_may_be_a_file_or_stand_in_the_sweep(write):
    named, whole = load_sweep(write()), load_sweep(write(run=RUN))
    assert named == whole
    assert named.run == RUN and named.name == "many" and named.vary["seed"] == (0, 1)


def test_spaces_may_be_files(write, tmp_path):
    (tmp_path / "half.yaml").write_text("sparsity: {target: 0.5}\n")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(RUN | {"space": "half.yaml"}))
    sweep = load_sweep(write(vary={"space": ["half.yaml", {"drop": {}}]}))
    assert sweep.run["space"] == {"sparsity": {"target": 0.5}}
    assert sweep.vary["space"] == ({"sparsity": {"target": 0.5}}, {"drop": {}})


def test_overrides_reach_the_run_inside(write):
    sweep = load_sweep(write(), ["run.search.generations=9", "ray.workers=2", "name=other"])
    assert sweep.run["search"]["generations"] == 9
    assert sweep.ray.workers == 2 and sweep.name == "other"


def test_files_named_on_the_command_line_are_read(write, tmp_path):
    (tmp_path / "half.yaml").write_text("sparsity: {target: 0.5}\nbudget: {params: 0.9}\n")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.yaml").write_text(yaml.safe_dump(RUN | {"space": "drop.yaml"}))
    (tmp_path / "other" / "drop.yaml").write_text("drop: {}\n")
    other = load_sweep(write(), ["run.seed=5", "run=other/run.yaml"])
    assert other.run == RUN | {"space": {"drop": {}}, "seed": 5}
    half = load_sweep(
        write(), ["run.space.budget.params=0.7", "run.space=half.yaml", "run=other/run.yaml"]
    )
    assert half.run["space"] == {"sparsity": {"target": 0.5}, "budget": {"params": 0.7}}
    inline = load_sweep(write(run=RUN | {"space": "half.yaml"}))
    assert inline.run["space"] == {"sparsity": {"target": 0.5}, "budget": {"params": 0.9}}
    with pytest.raises(ConfigError, match=r"absent\.yaml: no such configuration file"):
        load_sweep(write(), ["run.space=absent.yaml"])


def test_keys_may_be_nested_and_overridden(write):
    vary = {"space.budget": [{"params": 0.5}], "search": {"offspring": {"low": 2, "high": 4}}}
    sweep = load_sweep(write(vary=vary), ["vary.space.budget=[{params: 0.7}]"])
    assert sweep.vary == {
        "space.budget": ({"params": 0.7},),
        "search.offspring": Range(low=2, high=4),
    }


def test_the_resolved_sweep_reads_back_the_same(write, tmp_path):
    sweep = load_sweep(write(mode="optuna", trials=3, vary={"seed": {"low": 0, "high": 9}}))
    (tmp_path / "resolved.yaml").write_text(dump_config(sweep))
    assert load_sweep(tmp_path / "resolved.yaml") == sweep


@pytest.mark.parametrize(
    ("range_", "values"),
    [
        ({"low": 0, "high": 3}, (0, 1, 2, 3)),
        ({"low": 1, "high": 6, "step": 2}, (1, 3, 5)),
        ({"low": 0.1, "high": 0.4, "step": 0.1}, (0.1, 0.2, 0.3, 0.4)),
        ({"low": 0.4, "high": 0.75, "step": 0.1}, (0.4, 0.5, 0.6, 0.7)),
        ({"low": 0, "high": 1, "step": 0.5}, (0, 0.5, 1.0)),
    ],
)
def test_a_range_holds_both_its_ends(range_, values):
    assert Range(**range_).values() == values
    assert all(isinstance(v, int) for v in values) == Range(**range_).whole


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"modde": "grid"}, "unknown key 'modde': did you mean 'mode'"),
        ({"vary": {}}, "nothing to vary"),
        ({"vary": None}, "nothing to vary"),
        ({"vary": {"seed": []}}, "vary.seed: the list is empty"),
        ({"vary": {"seed": 3}}, "vary.seed: give a list"),
        ({"vary": {"seed": [1, 1]}}, "vary.seed: names a value twice"),
        ({"vary": {"seed": {"low": 0, "hihg": 3}}}, "hi"),
        ({"vary": {"seed": {"low": 3, "high": 0}}}, "low must be below high"),
        ({"vary": {"space.sparsity.target": {"low": 0.4, "high": 0.6}}}, "a range with a step"),
        ({"vary": {"name": ["a", "b"]}}, "vary.name: cannot be varied"),
        ({"vary": {"heal.steps": [1, 2]}}, "vary.heal.steps: cannot be varied: no trial heals"),
        ({"vary": {"ray.cpus": [1, 2]}}, "cannot be varied"),
        ({"vary": {"space": ["absent.yaml"]}}, "absent.yaml: no such configuration file"),
        ({"run": "absent.yaml"}, "absent.yaml: no such configuration file"),
        ({"mode": "optuna"}, "needs trials"),
        ({"trials": 4}, "trials is for mode: optuna"),
        ({"mode": "random"}, "key 'mode'"),
        ({"asha": {"grace_tokens": 9, "max_tokens": 3}}, "max_tokens must not be below"),
        ({"ray": {"storage": "/shared"}}, "ray.storage is for executor: ray; leave it out"),
        ({"ray": {"cpu": 1}}, "unknown key 'ray.cpu': did you mean 'cpus'"),
    ],
)
def test_what_is_wrong_is_one_clear_line(write, parts, message):
    with pytest.raises(ConfigError) as caught:
        load_sweep(write(**parts))
    assert message in str(caught.value) and "\n" not in str(caught.value)

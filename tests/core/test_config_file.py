import math

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from evocompress.core.config import RunConfig
from evocompress.core.config_file import changed, dump_config, load_config
from evocompress.core.errors import ConfigError
from evocompress.pipeline.resolve import check_names
from evocompress.search import SEARCHERS

RUN = {
    "model": {"source": "some/model"},
    "space": {"sparsity": {"target": 0.5}},
    "search": {"name": "evopress", "generations": 3},
}


@pytest.fixture
def run_file(tmp_path):
    path = tmp_path / "trial.yaml"
    path.write_text(yaml.safe_dump(RUN))
    return path


def test_name_defaults_to_the_file(run_file):
    config = load_config(run_file)
    assert config.name == "trial"
    assert config.search.settings == {"generations": 3}


def test_overrides_reach_nested_keys_and_are_typed(run_file):
    config = load_config(run_file, ["calibration.length=64", "search.offspring=8", "name=other"])
    assert config.calibration.length == 64
    assert config.search.settings["offspring"] == 8
    assert config.name == "other"


def test_space_may_be_another_file(run_file, tmp_path):
    (tmp_path / "space.yaml").write_text("sparsity: {target: 0.7}\n")
    assert load_config(run_file, ["space=space.yaml"]).space.sparsity.target == 0.7
    changes = ["space.sparsity.target=0.6", "space=space.yaml"]
    assert load_config(run_file, changes).space.sparsity.target == 0.6


def test_the_resolved_config_reads_back_the_same(run_file, tmp_path):
    config = load_config(run_file)
    (tmp_path / "resolved.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "resolved.yaml") == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("calibration.lenght=4", "unknown key 'calibration.lenght': did you mean 'length'"),
        ("modle=4", "unknown key 'modle': did you mean 'model'"),
        ("space.sparsity.target=2", "space.sparsity.target"),
        ("space.drop.units=[block,mlp]", "give \\[block\\]"),
        ("threads=0", "threads"),
        ("threads", "must look like key.key=value"),
        ("name.x=1", "'name' is not a mapping"),
    ],
)
def test_bad_keys_and_values_are_one_clear_line(run_file, override, message):
    overrides = ["name=trial", override] if override.startswith("name") else [override]
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(run_file, overrides)
    assert "\n" not in str(caught.value)


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(ConfigError, match="no such configuration file"):
        load_config(tmp_path / "absent.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(tmp_path / "broken.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="must hold a mapping"):
        load_config(tmp_path / "list.yaml")


def loaded(run_file, override):
    config = load_config(run_file, [override])
    check_names(config)
    return config


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("space.sparsity.pattern=2:4", "2:4"),
        ("name=2024-01-15", "2024-01-15"),
        ("name=010", "010"),
        ("library.damping=1e-3", 0.001),
        ("seed=1_000", 1000),
        ("model.trust_remote_code=yes", True),
        ("model.source=12:30:45", "12:30:45"),
    ],
)
def test_a_value_is_what_it_looks_like(run_file, tmp_path, override, value):
    config = loaded(run_file, override)
    found = config
    for key in override.partition("=")[0].split("."):
        found = getattr(found, key)
    assert found == value
    (tmp_path / "resolved.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "resolved.yaml") == config


NINE = "[" + ", ".join(["{}"] * 9) + "]"
BOMB = "{a: &a x, " + ", ".join(
    f"{new}: &{new} {NINE.replace('{}', '*' + old)}"
    for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)
BAD = [
    ("seed=2024-13-45", "seed"),
    ("seed=2024-01-15", "seed"),
    ("seed=1:30", "seed"),
    ("seed=!!int abc", "tags"),
    ("seed=!!python/name:os.system", "tags"),
    ("seed=-1", "seed"),
    (f"seed={2**63}", "seed"),
    ("seed=" + "9" * 5000, "a number of 5,000"),
    ("seed=true", "seed"),
    ("seed=1.5", "seed"),
    ('runs="a\\0b"', r"control character \\x00"),
    ('library.path="\\e[31m"', r"control character \\x1b"),
    ("runs=a\0b", r"control character \\x00"),
    ("ray.runtime_env=" + BOMB + "}", "aliases written out"),
    ("ray.runtime_env=&a [*a]", "an alias of what it is in"),
    ("ray.runtime_env=*nothing", "undefined alias"),
    ("ray.runtime_env=" + "[" * 100_000, "levels deep"),
    ("ray.runtime_env={a: 1, a: 2}", "'a' stands twice"),
    ("ray.runtime_env={1: 1, '1': 2}", "'1' stands twice"),
    ("ray.runtime_env={[1]: 1}", "a key must be a word"),
    ("ray.runtime_env={a: .inf}", ".inf is no finite number"),
    ("ray.runtime_env={a: [-.INF]}", "-.INF is no finite number"),
    ("name=" + "x" * 3_000_000, "characters"),
    ("y" * 100_000 + "=1", "unknown key"),
    (".".join("z" * 5_000) + "=1", "key.key=value"),
    ("a..b=1", "key.key=value"),
    ("name=.", "not dots alone"),
    ("name=..", "not dots alone"),
    ("name='...'", "not dots alone"),
    ("calibration.source=~nobody-here/text.txt", "no home of such a user"),
    ("model.source=~nobody-here/model", "no home of such a user"),
    ("library.path=" + "p" * 300, "255 bytes"),
    ("model.source=" + "p" * 300, "255 bytes"),
    ("name=a/b", "a name has letters"),
    ("name=" + "n" * 230, "at most 200 bytes"),
    ("threads=100000", "threads"),
    ("library.damping=1e308", "damping"),
    ("library.damping=.nan", ".nan is no finite number"),
    ("library.damping=1e999", "no finite number"),
    ("space.sparsity.match=[]", "match"),
    ("space.sparsity.target=0.999999999", "target"),
    ("space.sparsity.target=1e-9", "target"),
    ("space.sparsity.target=true", "target"),
    ("space.sparsity.levels=1e8", "levels"),
    ("space.sparsity.levels=100000000", "levels"),
    ("space.sparsity.pattern=0:0", "must look like 2:4"),
    ("space.sparsity.pattern=4:2", "must look like 2:4"),
    ("space.sparsity.pattern=1:4", "target must be 0.25; it is 0.5"),
    ("space.width={channels: []}", "channels"),
    ("space.width={kv_groups: []}", "kv_groups"),
    ("space.width={units: []}", "units"),
    ("calibration.search_sequences=1000000000000", "search_sequences"),
    (f"calibration.library_sequences={2**63}", "library_sequences"),
    ("calibration.length=1000000000", "length"),
    ("calibration.source='datasets:'", "give a text file"),
    ("calibration.source=' '", "give a text file"),
    ("calibration.heldout_source='datasets: '", "give a text file"),
    ("model.source=''", "source"),
    ("model.device=meta", "give auto, cpu, cuda"),
    ("model.device=''", "give auto, cpu, cuda"),
    ("model.device_memory=true", "device_memory"),
    ("model.device_memory=-1", "device_memory"),
    ("space.budget={body_params: true}", "body_params"),
    ("space.budget={body_params: 1e300}", "body_params"),
    ("space.budget={body_params: .inf}", "no finite number"),
    ("space.budget={body_params: -0.5}", "body_params"),
    ("heal.learning_rate=1e9", "learning_rate"),
    ("heal.batch=10000000", "batch"),
    ("evaluate.repeats=100000000", "repeats"),
    ("latency.prefill=[100000000, 1]", "prefill"),
    ("search.generations=true", "generations"),
    ("search.offspring=100000000", "offspring"),
    ("search.survivors=[]", "survivors"),
    ("search.stage_tokens=[100000000000000000000]", "stage_tokens"),
    ("ray.cpus=100000", "cpus"),
]


@pytest.mark.parametrize(
    ("override", "message"), BAD, ids=[o[:40].replace("\0", "") for o, _ in BAD]
)
def test_a_bad_value_is_one_short_line(run_file, override, message):
    with pytest.raises(ConfigError, match=message) as caught:
        loaded(run_file, override)
    assert len(str(caught.value)) < 600 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nseed: 2\n", "line 10, column 1: the key 'seed' stands twice"),
        ("library: {path: a, path: b}", "'path' stands twice"),
        ("ray: {runtime_env: " + BOMB + "}}", "aliases written out"),
        ("ray:\n" + "".join(" " * (n + 1) + "a:\n" for n in range(300)), "levels deep"),
        ("ray: {runtime_env: [" + "1, " * 100_000 + "]}", "values"),
        ("# " + "x" * 2_000_000, "characters"),
        ("notes: \x1b[31m", r"control character \\x1b"),
        ("heal: {learning_rate: .nan}", "no finite number"),
        ("--- \n{}", "another document"),
    ],
)
def test_a_bad_file_is_one_short_line(run_file, text, message):
    run_file.write_text(run_file.read_text() + text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(run_file)
    assert len(str(caught.value)) < 600 and "\n" not in str(caught.value)


def test_what_is_no_text_file_is_named(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(ConfigError, match="is not a text file"):
        load_config(tmp_path / "binary.yaml")
    with pytest.raises(ConfigError, match="no such configuration file"):
        load_config(tmp_path / "binary.yaml" / "run.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / ("x" * 300 + ".yaml"))


def test_values_can_be_shared_by_an_alias_and_merged(run_file):
    text = "heal: &own {batch: 4, seed: 3}\nray: {runtime_env: {<<: *own, seed: 5, more: *own}}\n"
    run_file.write_text(run_file.read_text() + text)
    shared = {"batch": 4, "seed": 5, "more": {"batch": 4, "seed": 3}}
    assert load_config(run_file).ray.runtime_env == shared


def fields_of(model, above=()):
    """The dotted place of every field of a configuration, with its class."""
    for name, field in model.model_fields.items():
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        inner = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
        if inner:
            yield from fields_of(inner[0], (*above, name))
        else:
            yield (*above, name)


def nested(place, value):
    for key in reversed(place):
        value = {key: value}
    return value


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e300, 10**4000])
def test_no_field_of_a_run_takes_a_number_without_bounds(value):
    for place in fields_of(RunConfig):
        if place == ("ray", "runtime_env"):
            continue
        for given in (value, [value], [value, value], {"params": value}):
            data = RUN | {"name": "trial"} | nested(place, given)
            with pytest.raises(ValidationError):
                RunConfig.model_validate(data)


@pytest.mark.parametrize("name", SEARCHERS.built_in)
def test_no_setting_of_a_searcher_takes_a_number_without_bounds(name):
    settings = SEARCHERS[name].Settings
    for field in settings.model_fields:
        for value in (math.inf, math.nan, 1e300, 10**4000):
            for given in (value, [value], [value] * 2, [value] * 3, {"params": (value, value)}):
                with pytest.raises(ValidationError):
                    settings.model_validate({field: given})


def test_an_override_of_a_loaded_configuration_is_checked_as_well(run_file):
    config = load_config(run_file)
    assert changed(config, ["heal.steps=7"]).heal.steps == 7
    with pytest.raises(ConfigError, match="steps"):
        changed(config, ["heal.steps=.inf"])

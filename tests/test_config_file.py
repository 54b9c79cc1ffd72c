import pytest
import yaml

from evocompress.config_file import dump_config, load_config
from evocompress.errors import ConfigError

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

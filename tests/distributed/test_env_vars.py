"""Values of environment variables reach the workers and are written nowhere."""

import json
import os

import pytest

from evocompress.core.config import RayConfig, RunConfig
from evocompress.core.config_file import changed, dump_config, load_config
from evocompress.core.env_vars import EnvVars, env_vars_of, told_to_ray
from evocompress.core.errors import ConfigError
from evocompress.distributed.worker import Assignment
from evocompress.pipeline.resolve import check_names
from evocompress.pipeline.run_folder import begin_run, check_run
from evocompress.pipeline.sweep import load_sweep
from evocompress.pipeline.sweep.folder import begin_sweep, check_sweep

SECRET = "hf_do-not-tell"
ENVIRONMENT = {"pip": ["x"], "env_vars": {"HF_TOKEN": SECRET, "OTHER": None}}


def run(tmp_path, environment=ENVIRONMENT, **changes):
    return RunConfig.model_validate(
        {
            "name": "trial",
            "runs": str(tmp_path),
            "model": {"source": "m"},
            "space": {"drop": {}, "budget": {"params": 0.7}},
            "ray": {"runtime_env": environment},
            **changes,
        }
    )


def test_a_worker_gets_values_and_ray_does_not(monkeypatch):
    monkeypatch.setenv("OTHER", "from here")
    config = RayConfig(runtime_env=ENVIRONMENT)
    found = env_vars_of(config)
    assert found.values == {"HF_TOKEN": SECRET, "OTHER": "from here"}
    assert told_to_ray(config) == {"pip": ["x"]}
    assert told_to_ray(RayConfig(runtime_env={"env_vars": {"A": "1"}})) is None
    assert SECRET not in repr(Assignment("", None, {}, 1, env_vars=found))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    found.enter()
    assert os.environ["HF_TOKEN"] == SECRET
    monkeypatch.setenv("HF_TOKEN", "")
    EnvVars().enter()


def test_a_run_keeps_the_names_and_goes_on(tmp_path, monkeypatch):
    config = run(tmp_path)
    folder = check_run(config, resume=False)
    begin_run(folder, config)
    written = folder.config_file.read_text()
    assert SECRET not in written and "HF_TOKEN: null" in written and "- x" in written
    assert SECRET not in dump_config(config) + config.model_dump_json()
    check_run(config, resume=True)
    kept = changed(load_config(folder.config_file), ["executor=ray"])
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("OTHER", "x")
    with pytest.raises(ConfigError, match="env_vars.HF_TOKEN has no value"):
        check_names(kept)
    monkeypatch.setenv("HF_TOKEN", "again")
    check_names(kept)
    assert env_vars_of(kept.ray).values == {"HF_TOKEN": "again", "OTHER": "x"}


def test_a_sweep_keeps_the_names_and_goes_on(tmp_path):
    text = f"""
runs: {tmp_path}
run:
  model: {{source: m}}
  space: {{drop: {{}}, budget: {{params: 0.7}}}}
  ray: {{runtime_env: {{env_vars: {{A: {SECRET}}}}}}}
vary: {{seed: [0, 1]}}
ray: {{runtime_env: {{env_vars: {{HF_TOKEN: {SECRET}}}}}}}
"""
    (tmp_path / "many.yaml").write_text(text)
    sweep = load_sweep(tmp_path / "many.yaml")
    folder = check_sweep(sweep, resume=False)
    begin_sweep(folder, sweep)
    written = folder.config_file.read_text()
    assert SECRET not in written and "HF_TOKEN: null" in written
    check_sweep(sweep, resume=True)
    assert env_vars_of(sweep.ray).values == {"HF_TOKEN": SECRET}


@pytest.mark.parametrize("variables", [{"A": 5}, {"A": [SECRET]}, [SECRET], SECRET])
def test_wrong_variables_are_not_shown(tmp_path, variables):
    path = tmp_path / "trial.yaml"
    path.write_text("model: {source: m}\nspace: {drop: {}}\n")
    change = f"ray.runtime_env={json.dumps({'env_vars': variables})}"
    with pytest.raises(ConfigError, match="must give names texts") as caught:
        load_config(path, [change])
    assert SECRET not in str(caught.value)

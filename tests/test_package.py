"""What the wheel carries, and that its run files are found."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml

import evocompress
from evocompress.core.config_file import load_config, shipped
from evocompress.pipeline.sweep import load_sweep

ROOT = Path(__file__).parents[1]
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
SPACES = sorted((ROOT / "search_spaces").glob("*.yaml"))
BUILD = "import sys; from hatchling.build import build_wheel; build_wheel(sys.argv[1])"
FIND = """
import evocompress, sys
from evocompress.core.config_file import load_config
assert evocompress.__file__.startswith(sys.argv[1])
for name in sys.argv[2:]:
    print(load_config(name).name)
"""


def test_the_project_says_what_the_wheel_carries():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["packages"] == ["evocompress"]
    assert wheel["force-include"] == {"search_spaces": "evocompress/search_spaces"}
    assert project["project"]["description"] and project["project"]["readme"] == "README.md"


def test_one_version_is_told_everywhere():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert evocompress.__version__ == version
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    assert f"\n## [{version}] - " in (ROOT / "CHANGELOG.md").read_text()


def test_the_workflow_runs_the_checks_on_every_python_that_is_promised():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pythons = jobs["checks"]["strategy"]["matrix"]["python"]
    assert project["requires-python"] == f">={pythons[0]}"
    assert all({"run": ".ci/run"}.items() <= job["steps"][-1].items() for job in jobs.values())
    assert jobs["lowest"]["steps"][-1]["env"]["CONSTRAINTS"] in jobs["lowest"]["steps"][-2]["run"]


def test_forms_of_issues_about_runs_ask_for_environment_and_run_file():
    forms = {path.stem: yaml.safe_load(path.read_text()) for path in FORMS if path.stem != "config"}
    for name, form in forms.items():
        fields = {field["id"]: field for field in form["body"] if "id" in field}
        asked = {key for key, field in fields.items() if field.get("validations")}
        assert {"environment", "run_file"} <= asked or name == "wish"
        assert "run_file" in fields
    assert {"fault", "result", "wish"} == set(forms)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("hatchling")
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-c", BUILD, str(out)], cwd=ROOT, check=True)
    (path,) = out.glob("*.whl")
    return ZipFile(path)


def test_the_wheel_has_code_run_files_templates_and_a_description(wheel):
    names = set(wheel.namelist())
    here = {path.relative_to(ROOT).as_posix() for path in (ROOT / "evocompress").rglob("*.*")}
    own = {name for name in here if "__pycache__" not in name}
    assert own <= names, own - names
    assert "evocompress/py.typed" in names
    assert {f"evocompress/search_spaces/{path.name}" for path in SPACES} <= names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "runs/"))]
    (metadata,) = [name for name in names if name.endswith(".dist-info/METADATA")]
    text = wheel.read(metadata).decode()
    assert "Summary: Finds how to compress" in text
    assert "Description-Content-Type: text/markdown" in text
    assert (ROOT / "README.md").read_text().strip() in text


def test_what_is_installed_finds_its_run_files_anywhere(wheel, tmp_path):
    wheel.extractall(tmp_path / "site")
    names = [path.stem for path in SPACES if "sweep" not in path.stem]
    done = subprocess.run(
        [sys.executable, "-c", FIND, str(tmp_path / "site"), *names],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == names


def test_a_shipped_file_is_found_by_name_and_a_users_own_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "smollm2_sparsity_50"
    for path in (name, f"{name}.yaml", f"search_spaces/{name}.yaml", f"search_spaces/{name}"):
        assert load_config(path).name == name
    assert load_sweep("smollm2_sweep").vary
    (tmp_path / f"{name}.yaml").write_text((ROOT / "search_spaces" / f"{name}.yaml").read_text())
    assert shipped(Path(f"{name}.yaml")) == Path(f"{name}.yaml")
    for other in (f"elsewhere/{name}.yaml", f"/search_spaces/{name}.yaml"):
        assert shipped(Path(other)) == Path(other)

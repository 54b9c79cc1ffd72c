"""The package of examples: its contracts, its page, and its names on the command line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from example_package import EXAMPLES, ROOT, installed
from run_files import EVOPRESS, write_run

from evocompress.testing.tiny import tiny_checkpoint

SOURCES = sorted((EXAMPLES / "src").rglob("*.py"))
PAGE = (ROOT / "docs" / "extending.md").read_text()

NAMED = {
    "search": {"name": "hill_climb", "steps": 3},
    "library": {"criterion": "ria"},
    "proxy": {"kind": "flips"},
}
"""What a run file says to have a searcher, a criterion and a proxy of the package."""

SCRIPT = """
import sys
from evocompress.api import search
from evocompress.core.config_file import load_config
from evocompress.evaluation.proxies.perplexity import LogPerplexity
from evocompress.search.baselines.random_search import RandomSearch

class OwnSearch(RandomSearch):
    pass

class OwnLoss(LogPerplexity):
    name = "own loss"

if __name__ == "__main__":
    search(load_config(sys.argv[1], sys.argv[2:]), searcher=OwnSearch, proxy=OwnLoss)
"""


def python(path: list[str], *arguments: object) -> str:
    """What Python prints where these folders are on its path."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def evocompress(path: list[str], *arguments: object) -> str:
    return python(path, "-m", "evocompress", *arguments)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    tiny_checkpoint(tmp_path / "model")
    return tmp_path


@pytest.fixture
def path(tmp_path: Path) -> list[str]:
    """Folders with the package as it would be installed."""
    (tmp_path / "site").mkdir()
    return installed(tmp_path / "site")


def check_run(folder: Path) -> None:
    """A run that the package had a part in says so, and its checkpoint has a file per block."""
    made = json.loads((folder / "environment.json").read_text())
    assert made["versions"]["evocompress-examples"] == "0.1.0"
    manifest = json.loads((folder / "library" / "manifest.json").read_text())
    assert manifest["versions"]["evocompress-examples"] == "0.1.0"
    written = {file.name for file in (folder / "checkpoint").glob("*.safetensors")}
    assert written == {f"block-{name}.safetensors" for name in (0, 1, 2, "rest")}


def test_each_example_is_a_page_of_code_and_stands_in_the_docs() -> None:
    for source in SOURCES:
        text = source.read_text()
        assert len(text.splitlines()) <= 40
        assert source.name == "__init__.py" or f"```python\n{text}```" in PAGE
    project = (EXAMPLES / "pyproject.toml").read_text()
    points = project[project.index("[project.entry-points") : project.index("[tool.")].rstrip()
    assert f"```toml\n{points}\n```" in PAGE


def test_the_searcher_is_fifteen_lines() -> None:
    text = (EXAMPLES / "src" / "evocompress_examples" / "hill_climb.py").read_text()
    own = re.sub(r'""".*?"""', "", text[text.index("class HillClimb") :], flags=re.DOTALL)
    assert sum(bool(line.strip()) for line in own.splitlines()) <= 15


def test_the_examples_keep_their_contracts(path: list[str]) -> None:
    tests = EXAMPLES / "tests"
    said = python(path, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tests, tests)
    assert re.search(r"\d{3} passed", said)


def test_names_of_the_package_are_used_on_the_command_line(home: Path, path: list[str]) -> None:
    run = write_run(home, **NAMED)
    evocompress(path, "search", run)
    folder = home / "runs" / "trial"
    evocompress(path, "materialize", folder, "--for", "vllm", "--format", "per_block")
    check_run(folder)


def test_a_name_of_a_package_that_is_gone_is_one_line(home: Path) -> None:
    run = write_run(home, **NAMED)
    command = [sys.executable, "-m", "evocompress", "search", str(run)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "unknown searcher 'hill_climb': " in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_an_installed_package_is_used_by_two_workers_as_well(home: Path) -> None:
    site = home / "site"
    pip = ["pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", site]
    python([], "-m", *pip, EXAMPLES)
    path = [str(site), str(ROOT)]
    winners = []
    for name, changes in ("local", []), ("workers", ["executor=ray", "ray.workers=2"]):
        run, folder = write_run(home, name=name, **NAMED), home / "runs" / name
        evocompress(path, "search", run, *changes)
        evocompress(path, "materialize", folder, "--format", "per_block")
        check_run(folder)
        winners.append(json.loads((folder / "winner.json").read_text()))
    assert winners[0] == winners[1]


@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_objects_of_a_script_are_used_by_two_workers_as_well(home: Path) -> None:
    script = home / "own.py"
    settings = {key: value for key, value in EVOPRESS.items() if key != "name"}
    script.write_text(SCRIPT)
    winners = []
    for name, changes in ("local", []), ("workers", ["executor=ray", "ray.workers=2"]):
        run = write_run(home, name=name, search=settings)
        python([str(ROOT)], script, run, *changes)
        saved = yaml.safe_load((home / "runs" / name / "config.yaml").read_text())
        assert saved["search"]["name"] == "__main__:OwnSearch"
        winners.append(json.loads((home / "runs" / name / "winner.json").read_text()))
    assert winners[0] == winners[1]

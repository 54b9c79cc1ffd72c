"""The package and its help come at once; what is heavy waits until it is used."""

import json
import subprocess
import sys

import pytest

SECONDS = 0.5
LOADED = "import json, sys, time\nstart = time.perf_counter()\n{}\n" + (
    "print(json.dumps([time.perf_counter() - start, sorted(sys.modules)]))"
)
HELP = """
import contextlib, io
from evocompress.cli.commands import app
with contextlib.redirect_stdout(io.StringIO()) as said:
    app(["--help"], standalone_mode=False)
assert "search" in said.getvalue()
"""
VERSION = 'from evocompress.cli.commands import app\napp(["--version"], standalone_mode=False)'
SPACES = 'from evocompress.cli.commands import app\napp(["spaces"], standalone_mode=False)'
FIGURES_AND_SEARCHERS = {"plotly", "lightgbm", "pymoo", "optuna", "ray"}
HEAVY = FIGURES_AND_SEARCHERS | {"torch", "transformers", "numpy", "numba", "scipy"}


def imported(code):
    """(seconds, modules that are loaded afterwards) of some lines in a fresh process."""
    run = [sys.executable, "-c", LOADED.format(code)]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_import_is_quick_and_light():
    runs = [imported("import evocompress") for _ in range(3)]
    assert min(seconds for seconds, _ in runs) < SECONDS
    assert HEAVY.isdisjoint(runs[0][1])


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        (HELP, HEAVY),
        (VERSION, HEAVY),
        (SPACES, HEAVY),
        ("import evocompress.pipeline.doctor", HEAVY),
        ("import evocompress.api", FIGURES_AND_SEARCHERS | {"scipy.stats"}),
        ("import evocompress.search", HEAVY - {"numpy"}),
        ("import evocompress.hf", FIGURES_AND_SEARCHERS | {"numba"}),
    ],
    ids=["--help", "--version", "spaces", "doctor", "api", "search", "hf"],
)
def test_what_is_not_used_is_not_loaded(code, absent):
    assert absent & set(imported(code)[1]) == set()

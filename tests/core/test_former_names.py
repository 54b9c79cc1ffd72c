"""Paths of earlier versions lead to the modules of today."""

import subprocess
import sys
from importlib import import_module

import pytest

from evocompress.core.former_names import FORMER


@pytest.mark.parametrize("former", FORMER)
def test_a_former_name_is_the_module_of_today(former):
    with pytest.warns(FutureWarning, match=f"evocompress.{former} is now"):
        sys.modules.pop(f"evocompress.{former}", None)
        found = import_module(f"evocompress.{former}")
    today = import_module(f"evocompress.{FORMER[former]}")
    assert found is today and today.__spec__.name == today.__name__


@pytest.mark.parametrize(
    ("former", "today"),
    [
        ("families.base", "models.families.base"),
        ("library.manifest", "compression.library.manifest"),
        ("costs.model", "space.costs.model"),
        ("proxies.kl", "evaluation.proxies.kl"),
    ],
)
def test_what_is_below_a_former_name_is_no_second_copy(former, today):
    code = (
        "import sys, warnings; warnings.simplefilter('ignore')\n"
        f"import evocompress.{today}\nbefore = sys.modules['evocompress.{today}']\n"
        f"from importlib import import_module\n"
        f"assert import_module('evocompress.{former}') is before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


LINES = """
import warnings; warnings.simplefilter("ignore")
from evocompress.apply import LiveModel
from evocompress.config_file import load_config
from evocompress.costs import cost_model
from evocompress.families.base import Family
from evocompress.heal import heal
from evocompress.library import build_library
from evocompress.models import LoadedModel, load
from evocompress.profile import profile, table_rows
from evocompress.run import replay
from evocompress.space import SearchSpace, build_space
import evocompress.types as words
from evocompress.core import types
from evocompress.models.families import base
from evocompress.evaluation import heldout_quality
from evocompress.search.knapsack import knapsack
assert words is types and Family is base.Family
"""


def test_lines_of_earlier_documentation_run():
    subprocess.run([sys.executable, "-c", LINES], check=True)


def test_what_never_was_is_not_found():
    with pytest.raises(ModuleNotFoundError):
        import_module("evocompress.nowhere")
    with pytest.raises(ModuleNotFoundError):
        import_module("evocompress.types.nowhere")

import os
from functools import cache
from pathlib import Path

import pytest
import torch

# No test needs a model hub, and one that is out of reach costs half a minute of retries.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

HEAVY = ("real", "cluster", "engines", "torture")


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@cache
def heavy(file):
    """Whether tests of a file start a cluster, load a real model or take all cores."""
    text = (Path(__file__).parents[1] / file).read_text()
    return any(f"mark.{name}" in text for name in HEAVY)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """One process runs the heavy files one after the other, beside the small tests.

    A scheduler of our own, as marks of `xdist_group` are lost between pytest 9.2 and xdist 3.8.
    """
    from xdist.scheduler import LoadScopeScheduling

    class OneHeavy(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return "heavy" if heavy(nodeid.partition("::")[0]) else nodeid

    return OneHeavy(config, log) if config.getvalue("dist") == "loadgroup" else None

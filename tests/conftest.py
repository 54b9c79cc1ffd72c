import os

import pytest
import torch

# No test needs a model hub, and one that is out of reach costs half a minute of retries.
os.environ.setdefault("HF_HUB_OFFLINE", "1")


HEAVY = ("real", "cluster", "engines", "torture")


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in the same hook
def pytest_collection_modifyitems(items):
    for item in items:
        if any(item.get_closest_marker(name) for name in HEAVY):
            # One process runs them all, one after the other, beside the small tests.
            item.add_marker(pytest.mark.xdist_group("heavy"))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))

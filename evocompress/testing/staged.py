"""What tests must know of families whose models change the shape of their state: CNNs."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from evocompress.models.families import Family
from evocompress.models.families.convolutional import Convolutional
from evocompress.testing.tiny import declared


def has_packages(name: str) -> bool:
    """Whether what a family needs is installed."""
    return not isinstance(declared(name), Convolutional) or find_spec("torch_pruning") is not None


def require_packages(name: str) -> None:
    """Skips a test of a family whose packages are not installed, and says which."""
    if not has_packages(name):
        pytest.skip("torch-pruning is not installed: pip install 'evocompress[cnn]'")


def staged(family: Family) -> bool:
    """Whether the state of a model has another shape in each of several stages."""
    return isinstance(family, Convolutional)

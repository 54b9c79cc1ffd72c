from __future__ import annotations

import re
from pathlib import Path

import pytest

from evocompress.models.families import Family
from evocompress.testing.families import FamilyContract
from evocompress.testing.tiny import NAMES, declared


@pytest.mark.parametrize("name", NAMES)
class TestFamilies(FamilyContract):
    pass


def test_the_interface_stays_small() -> None:
    public = [name for name in vars(Family) if not name.startswith("_")]
    methods = [name for name in public if callable(getattr(Family, name))]
    assert len(methods) <= 13


def test_the_readme_lists_every_model_type() -> None:
    readme = (Path(__file__).parents[3] / "README.md").read_text()
    listed = re.search(r"^\| models \| (.*?);", readme, flags=re.MULTILINE)
    types = dict.fromkeys(declared(name).model_type for name in NAMES)
    assert listed is not None and listed[1] == ", ".join(types)


def test_the_page_lists_every_family() -> None:
    page = Path(__file__).parents[3] / "docs" / "families.md"
    listed = re.findall(r"^\| `([\w-]+)` \|", page.read_text(), flags=re.MULTILINE)
    assert listed == [*dict.fromkeys(declared(name).model_type for name in NAMES)]


def test_the_example_of_the_page_is_the_file() -> None:
    root = Path(__file__).parents[3]
    file = root / "examples/evocompress_examples/src/evocompress_examples/modernbert_decoder.py"
    assert f"```python\n{file.read_text()}```" in (root / "docs" / "extending.md").read_text()

"""Names of installed packages: when code is loaded, and what is said of packages that are wrong."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from evocompress.core import registry
from evocompress.core.errors import ConfigError
from evocompress.core.registry import Registry, UnknownName

GROUP = "evocompress.fruits"


def fruits() -> Registry[int]:
    return Registry("fruit", GROUP, {"apple": 1}, lambda found: isinstance(found, int))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of installed packages, which the test fills."""
    monkeypatch.syspath_prepend(tmp_path)
    registry._entry_points.cache_clear()
    yield tmp_path
    registry._entry_points.cache_clear()
    for name in [name for name in sys.modules if name.startswith("orchard")]:
        del sys.modules[name]


def install(site: Path, package: str, code: str, **offered: str) -> None:
    """Puts a package there that offers fruits."""
    (site / f"{package}.py").write_text(code)
    info = site / f"{package}-2.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 2.5\n")
    lines = [f"{name} = {value}" for name, value in offered.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines]))


def test_code_is_loaded_when_its_name_is_looked_up(site: Path) -> None:
    install(site, "orchard", "PEAR = 2", pear="orchard:PEAR")
    found = fruits()
    assert list(found) == ["apple", "pear"] and len(found) == 2 and "pear" in found
    found.check("pear", "fruit.name")
    assert found.packages("apple", "pear", None) == {"orchard"}
    assert "orchard" not in sys.modules
    assert dict(found) == {"apple": 1, "pear": 2}
    assert found.built_in == ("apple",) and not found.is_given("pear")


def test_a_built_in_name_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_entry_points", None)
    assert fruits()["apple"] == 1 and "apple" in fruits() and fruits().packages("apple") == set()


def test_a_package_that_cannot_be_imported_is_named(site: Path) -> None:
    install(site, "orchard", "import nowhere_at_all", pear="orchard:PEAR")
    with pytest.raises(ConfigError) as caught:
        fruits()["pear"]
    assert str(caught.value) == (
        "the fruit 'pear' of orchard 2.5 (orchard:PEAR) cannot be imported (ModuleNotFoundError: "
        "No module named 'nowhere_at_all'): mend that package or uninstall it"
    )
    assert fruits()["apple"] == 1  # nobody who does not ask for it is disturbed


def test_a_package_that_cannot_be_imported_is_looked_over(site: Path) -> None:
    install(site, "orchard", "import nowhere_at_all", pear="orchard:PEAR")
    install(site, "orchards", "FIG = 3", fig="orchards:FIG")
    assert fruits().usable() == {"apple": 1, "fig": 3}


def test_an_object_of_another_kind_is_refused(site: Path) -> None:
    install(site, "orchard", "PEAR = 'pear'", pear="orchard:PEAR")
    with pytest.raises(ConfigError, match=r"'pear' of orchard 2.5 \(orchard:PEAR\) is none: mend"):
        fruits()["pear"]


def test_two_packages_with_one_name_are_named(site: Path) -> None:
    install(site, "orchard", "APPLE = 2", apple="orchard:APPLE")
    with pytest.raises(ConfigError) as caught:
        list(fruits())
    assert str(caught.value) == (
        "orchard 2.5 has a fruit 'apple', as evocompress itself has: uninstall one of them"
    )


def test_two_packages_that_offer_the_same_are_named(site: Path) -> None:
    install(site, "orchard", "PEAR = 2", pear="orchard:PEAR")
    install(site, "orchard_two", "PEAR = 3", pear="orchard_two:PEAR")
    with pytest.raises(ConfigError, match=r"orchard\S* 2.5 has a fruit 'pear', as orchard\S* 2.5"):
        fruits()["pear"]


def test_an_unknown_name_is_one_line(site: Path) -> None:
    install(site, "orchard", "PEAR = 2", pear="orchard:PEAR")
    with pytest.raises(UnknownName) as caught:
        fruits()["plum"]
    assert str(caught.value) == "there is no fruit 'plum' here: install the package that has it"
    assert fruits().get("plum") is None
    with pytest.raises(ConfigError, match="^fruit.name: unknown fruit 'pea': did you mean 'pear'"):
        fruits().check("pea", "fruit.name")


def test_an_object_is_known_by_module_and_name() -> None:
    found: Registry[type] = Registry("kind", GROUP, {}, lambda found: isinstance(found, type))
    name = found.give(Path)
    assert name == f"{Path.__module__}:Path" and found[name] is Path and found.is_given(name)
    assert found.packages(name) == set()
    with pytest.raises(ConfigError, match=r"^5 cannot be a kind: give a class$"):
        found.give(5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="an object that evocompress.api.search was given: give"):
        found.check("mine:Kind", "kind")

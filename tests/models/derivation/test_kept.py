"""Derived families in the cache folder: read back whole, or found anew."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import HeliumConfig, HeliumForCausalLM

from evocompress.models.families.derivation import derived as module
from evocompress.models.families.derivation import kept
from evocompress.models.families.derivation.derived import derive, derived
from evocompress.models.families.derivation.family import Derived
from evocompress.models.families.derivation.from_config import language_class
from evocompress.models.families.derivation.kept import reading_of
from evocompress.testing.derived import typical_config


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVOCOMPRESS_CACHE", str(tmp_path))
    return tmp_path / "families"


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An entry for each derivation."""
    found: list[str] = []

    def counted(cls: type, config: object) -> Derived:
        found.append(cls.__name__)
        return derive(cls, config)

    monkeypatch.setattr(module, "derive", counted)
    return found


def again(monkeypatch: pytest.MonkeyPatch) -> Derived:
    """What a new process finds."""
    monkeypatch.setattr(module, "_KNOWN", {})
    return derived(HeliumForCausalLM, HeliumConfig())


@pytest.mark.parametrize("name", ["olmo2", "gpt_neox", "lfm2", "gpt_oss", "deepseek_v3"])
def test_what_is_read_back_is_what_was_kept(name: str) -> None:
    config = typical_config(name)
    family = derive(language_class(config), config)
    kept.keep(name, family)
    found = kept.kept(name)
    assert found is not None and reading_of(found) == reading_of(family)
    assert found.limits == family.limits
    for index in range(len(family.order)):
        assert found.at(index).matrices == family.at(index).matrices


def test_a_family_is_found_once(tries: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = again(monkeypatch), again(monkeypatch)
    assert tries == ["HeliumForCausalLM"]
    assert reading_of(first) == reading_of(second) and first is not second


@pytest.mark.parametrize("change", ["cut", "edited", "other", "version"])
def test_a_damaged_or_older_file_is_as_none(
    change: str, tries: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again(monkeypatch)
    [path] = folder.iterdir()
    text = path.read_text()
    if change == "version":
        monkeypatch.setattr(kept, "versions_of", lambda *_: ("another",))
    else:
        changes = {"cut": text[:100], "edited": text.replace("o_proj", "q_proj"), "other": "{}"}
        path.write_text(changes[change])
    assert reading_of(again(monkeypatch)) == reading_of(again(monkeypatch))
    assert len(tries) == 2


def test_a_cache_that_cannot_be_written_is_done_without(
    tries: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.write_text("in the way")
    for count in (1, 2):
        assert again(monkeypatch).model_type == "helium"
        assert len(tries) == count

"""Rows of types: found by processes that may be slow or die, and kept."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from evocompress.core.errors import ModelError
from evocompress.core.progress import Silent
from evocompress.pipeline.offers import markdown, table
from evocompress.pipeline.offers.offers import Holding, Offers
from evocompress.pipeline.offers.table import Worker, offers_by_type

KNOWN = Offers("olmo", "OlmoForCausalLM", "derived", 2, {"heads": 2}, {"hf": Holding(("zeros",))})


def answer(name: str) -> Offers:
    if name == "bloom":
        os._exit(3)
    if name == "mpt":
        time.sleep(60)
    return KNOWN


def test_a_type_that_is_slow_or_fatal_is_a_row_with_its_reason() -> None:
    worker = Worker(answer, limit=0.5, start="fork")
    try:
        assert worker.ask("bloom").reasons == ("the process that tried it ended",)
        assert worker.ask("mpt").reasons == ("trying it takes longer than 0 s",)
        worker.limit = 60
        assert worker.ask("olmo") == KNOWN
    finally:
        worker.close()


class Fake:
    asked: list[str] = []

    def __init__(self, limit: float) -> None:
        pass

    def ask(self, name: str) -> Offers:
        self.asked.append(name)
        return KNOWN

    def close(self) -> None:
        pass


def test_what_was_found_is_kept_until_the_code_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVOCOMPRESS_CACHE", str(tmp_path))
    monkeypatch.setattr(table, "Worker", Fake)
    monkeypatch.setattr(Fake, "asked", [])
    for _ in range(2):
        assert offers_by_type(["olmo"], Silent()) == [KNOWN]
    assert Fake.asked == ["olmo"]
    [path] = (tmp_path / "offers").iterdir()
    path.write_text(path.read_text().replace("2", "3"))
    assert offers_by_type(["olmo"], Silent()) == [KNOWN]
    assert Fake.asked == ["olmo"] * 2
    monkeypatch.setattr(table, "_code", lambda: ("another",))
    offers_by_type(["olmo"], Silent())
    assert Fake.asked == ["olmo"] * 3


def test_an_unknown_type_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match="no causal language model of type 'olmoo'"):
        offers_by_type(["olmo", "olmoo"], Silent())


def test_markdown_has_a_line_for_each_type() -> None:
    heading, rule, row = markdown([KNOWN])
    assert heading.startswith("| type | layout | attention ") and set(rule) == set("| -")
    assert row == "| olmo | derived | - | - | - | yes | - | - | - | hf |  |"

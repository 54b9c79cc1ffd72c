"""Rows of types: found by processes that may be slow or die, and kept."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evocompress.core.errors import ModelError
from evocompress.core.progress import Silent
from evocompress.pipeline.offers import (
    format_rows,
    formats_markdown,
    markdown,
    offers_of_type,
    table,
    type_names,
)
from evocompress.pipeline.offers.offers import Holding, Offers
from evocompress.pipeline.offers.table import MEMORY, OfferWorker, Unanswered, offers_by_type

KNOWN = Offers(
    "helium", "HeliumForCausalLM", "derived", 2, {"heads": 2}, {"hf": Holding(("zeros",))}
)


def answer(name: str) -> Offers:
    if name == "bloom":
        os._exit(3)
    if name == "mpt":
        time.sleep(60)
    if name == "xlstm":
        torch.empty(2 * MEMORY, dtype=torch.uint8)
    return KNOWN


def test_a_process_that_is_slow_or_dies_is_told_and_followed_by_another() -> None:
    worker = OfferWorker(answer, limit=60, start="fork")
    try:
        with pytest.raises(Unanswered, match="the process that tried it ended"):
            worker.ask("bloom")
        assert worker.ask("helium") == KNOWN
        worker.limit = 0.2
        with pytest.raises(Unanswered, match="trying it takes longer than 0 s"):
            worker.ask("mpt")
        worker.limit = 60
        assert worker.ask("helium") == KNOWN
        with pytest.raises(Unanswered, match="the process that tried it ended"):
            worker.ask("xlstm")  # an answer that wants more memory than there is for one
    finally:
        worker.close()


def test_a_type_without_an_answer_is_a_row_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVOCOMPRESS_CACHE", str(tmp_path))
    monkeypatch.setattr(table, "OfferWorker", Fake)
    [row] = offers_by_type(["bloom"], Silent())
    assert (row.model_type, row.cls, row.layout) == ("bloom", "BloomForCausalLM", "none")
    assert row.reasons == ("too slow",)


class Fake:
    asked: list[str] = []

    def __init__(self, answer: object, limit: float) -> None:
        assert answer is offers_of_type and limit > 60

    def ask(self, name: str) -> Offers:
        self.asked.append(name)
        if name == "bloom":
            raise Unanswered("too slow")
        return KNOWN

    def close(self) -> None:
        pass


def test_what_was_found_is_kept_until_the_code_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVOCOMPRESS_CACHE", str(tmp_path))
    monkeypatch.setattr(table, "OfferWorker", Fake)
    monkeypatch.setattr(Fake, "asked", [])
    for _ in range(2):
        assert offers_by_type(["helium"], Silent()) == [KNOWN]
    assert Fake.asked == ["helium"]
    [path] = (tmp_path / "offers").iterdir()
    path.write_text(path.read_text().replace("2", "3"))
    assert offers_by_type(["helium"], Silent()) == [KNOWN]
    assert Fake.asked == ["helium"] * 2
    monkeypatch.setattr(table, "_code", lambda: ("another",))
    offers_by_type(["helium"], Silent())
    assert Fake.asked == ["helium"] * 3


def test_an_unknown_type_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match="images of type 'heliumo'"):
        offers_by_type(["helium", "heliumo"], Silent())


def test_markdown_has_a_line_for_each_type() -> None:
    heading, rule, row = markdown([KNOWN])[-3:]
    assert heading.startswith("| type | layout | attention ") and set(rule) == set("| -")
    assert row == "| helium | derived | - | - | - | yes | - | - | - | - | hf |  |"


PAGE = Path(__file__).parents[3] / "docs" / "types.md"
FORMATS = PAGE.with_name("formats.md")


def test_the_page_of_types_lists_all() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    assert [row.split()[1] for row in rows[2:]] == type_names()


@pytest.mark.parametrize("name", ["llama", "mixtral", "bert", "olmo2", "bloom"])
def test_the_page_of_formats_is_what_the_code_says(name: str) -> None:
    *heading, row = formats_markdown([offers_of_type(name)])
    page = FORMATS.read_text().splitlines()
    assert page[: len(heading)] == heading
    again = "write it anew: evocompress models --formats --markdown > docs/formats.md"
    assert row in page, again


def test_what_formats_hold_is_told_in_words() -> None:
    zeros, every = ("zeros",), ("zeros", "block", "width")
    held = {"stock": Holding(zeros, "cannot"), "hf": Holding(every), "deci": Holding(())}
    known = replace(KNOWN, formats=held)
    bart = replace(KNOWN, model_type="bart", formats={})
    heading, *rows = format_rows([known, bart])
    assert heading == ("type", "stock", "hf", "deci")
    assert rows == [("helium", "zeros", "all", "-")]


@pytest.mark.parametrize("name", ["llama", "mixtral", "bert", "olmo2", "gpt_neox", "bart"])
def test_the_page_of_types_is_what_the_code_says(name: str) -> None:
    *heading, row = markdown([offers_of_type(name)])
    page = PAGE.read_text().splitlines()
    assert page[: len(heading)] == heading
    assert row in page, "write it anew: evocompress models --markdown > docs/types.md"

"""The law of healing, and healing for as long as it pays."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from evocompress.core.config import HealConfig
from evocompress.healing import cycles, heal_in_cycles
from evocompress.healing.law import HealingLaw, fit_law
from evocompress.models.loading import LoadedModel


@pytest.mark.parametrize("law", [HealingLaw(0.8, 0.1, 5e4, 0.4), HealingLaw(2.0, 0.0, 2e3, 0.15)])
def test_a_law_is_found_again(law: HealingLaw) -> None:
    tokens = [16_384 * (2**n - 1) for n in range(1, 6)]
    found = fit_law(law.before, [(d, law.kl(d)) for d in tokens])
    assert found is not None
    for further in (2e6, 8e6):
        assert found.kl(further) == pytest.approx(law.kl(further), rel=0.02)
    assert fit_law(law.before, [(1.0, 0.5), (2.0, 0.4)]) is None


@pytest.mark.parametrize(
    ("law", "most", "cycles_made"),
    [
        (HealingLaw(1.0, 0.9, 1e3, 1.0), 10_000_000, 3),
        (HealingLaw(1.0, 0.0, 1e3, 0.5), 10_000_000, 9),
        (HealingLaw(1.0, 0.0, 1e3, 0.5), 100_000, 2),
    ],
    ids=["flat", "steep", "most"],
)
def test_the_tokens_that_pay_are_those_of_the_cycles(
    law: HealingLaw, most: int, cycles_made: int
) -> None:
    config = HealConfig(tokens="auto", most_tokens=most)
    assert cycles.tokens_that_pay(law, config) == cycles.FIRST_TOKENS * (2**cycles_made - 1)


def test_an_end_is_found(teacher: LoadedModel) -> None:
    flat = fit_law(1.0, [(1e4, 0.5), (3e4, 0.41), (7e4, 0.405), (15e4, 0.405)])
    assert flat is not None
    assert flat.kl(30e4) > 0.98 * 0.405


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cycles, "FIRST_TOKENS", 128)


def text(count: int) -> Callable[[int], Tensor]:
    """What gives `count` sequences in all."""
    every = torch.randint(1, 240, (count, 16), generator=torch.Generator().manual_seed(1))
    rows = iter(every)

    def take(wanted: int) -> Tensor:
        found = list(islice(rows, wanted))
        return torch.stack(found) if found else torch.empty(0)

    return take


CONFIG = HealConfig(
    tokens="auto", evaluate_every=2, learning_rate=3e-3, least_gain=1e-6, most_tokens=128 * 7
)


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "checkpoint" / "model.safetensors")


@pytest.mark.usefixtures("small")
def test_cycles_double_until_the_most_tokens(
    teacher: LoadedModel, student: Path, validation: Tensor, tmp_path: Path
) -> None:
    report = heal_in_cycles(student, teacher, text(1000), validation, CONFIG, tmp_path / "heal")
    assert report.tokens == 128 * 7 and report.steps == 2 + 4 + 8
    assert report.best_kl < report.initial_kl
    assert report.law is not None and report.next_kl == report.law.kl(2 * report.tokens)
    records = [json.loads(line) for line in (tmp_path / "heal" / "heal.jsonl").open()]
    assert [record["step"] for record in records] == list(range(15))
    last = tmp_path / "heal" / "cycles" / "2"
    assert all(torch.equal(weights(last)[k], w) for k, w in weights(tmp_path / "heal").items())


@pytest.mark.usefixtures("small")
def test_it_ends_where_little_is_foretold(
    teacher: LoadedModel, student: Path, validation: Tensor, tmp_path: Path
) -> None:
    config = CONFIG.model_copy(update={"least_gain": 0.99, "most_tokens": 10**6})
    report = heal_in_cycles(student, teacher, text(1000), validation, config, tmp_path / "heal")
    assert report.tokens == 128 * 7, "a law takes three cycles, and the fourth would bring little"


@pytest.mark.usefixtures("small")
def test_it_ends_with_the_text(
    teacher: LoadedModel, student: Path, validation: Tensor, tmp_path: Path
) -> None:
    config = CONFIG.model_copy(update={"most_tokens": 10**6})
    report = heal_in_cycles(student, teacher, text(37), validation, config, tmp_path / "heal")
    assert report.tokens == 36 * 16, "sequences that fill no step are left"


def test_a_text_shorter_than_a_cycle_is_used_once(
    teacher: LoadedModel, student: Path, validation: Tensor, tmp_path: Path
) -> None:
    report = heal_in_cycles(student, teacher, text(9), validation, CONFIG, tmp_path / "heal")
    assert report.tokens == 8 * 16 and report.law is None and report.next_kl is None


@pytest.mark.usefixtures("small")
def test_a_resumed_one_ends_in_the_same_weights(
    teacher: LoadedModel, student: Path, validation: Tensor, tmp_path: Path
) -> None:
    heal_in_cycles(student, teacher, text(1000), validation, CONFIG, tmp_path / "whole")

    def stop(done: float, total: float, said: str) -> None:
        if said.startswith("cycle 2") and done == 3:
            raise KeyboardInterrupt

    parts = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        heal_in_cycles(student, teacher, text(1000), validation, CONFIG, parts, progress=stop)
    heal_in_cycles(student, teacher, text(1000), validation, CONFIG, parts, resume=True)
    first, second = weights(tmp_path / "whole"), weights(parts)
    assert all(torch.equal(first[name], second[name]) for name in first)

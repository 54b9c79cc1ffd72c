"""Text for healing: what the calibration does not have, from one or several sources."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from evocompress.core.config import CalibrationConfig, HealConfig
from evocompress.core.errors import DataError
from evocompress.evaluation.calibration.calibration import Calibration, load_calibration
from evocompress.evaluation.calibration.fresh import FreshText, repetition
from evocompress.models.loading import LoadedModel
from evocompress.testing.tiny import tiny_loaded

LENGTH = 32


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny_loaded("llama")


def lines(first: int, count: int) -> str:
    return "".join(f"Line {n} says {n * n % 9973}.\n" for n in range(first, first + count))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(lines(0, 400))
    return path


def cut(source: Path | str, **changes: Any) -> CalibrationConfig:
    sizes = {"library_sequences": 3, "search_sequences": 5, "heldout_sequences": 2}
    return CalibrationConfig.model_validate(
        {"source": str(source), "length": LENGTH, **sizes, **changes}
    )


@dataclass(frozen=True)
class Taken:
    """What a healing takes: first to validate, then to train."""

    train: Tensor
    validation: Tensor
    note: str


def read(
    loaded: LoadedModel, cutting: CalibrationConfig, **changes: Any
) -> tuple[Taken, Calibration]:
    calibration = load_calibration(cutting, loaded)
    given = HealConfig.model_validate(
        {"steps": 3, "batch": 2, "accumulate": 2, "validation_sequences": 2, **changes}
    )
    config = given.at(LENGTH)
    text = FreshText(config, cutting, loaded, calibration)
    train, validation = text.take_both(config.sequences, config.validation_sequences)
    note = repetition(config.sequences, len(train), config, cutting.source)
    return Taken(train, validation, note), calibration


def runs(*parts: Tensor) -> set[tuple[int, ...]]:
    """All runs of `LENGTH` tokens of sequences that follow one another."""
    stream = torch.cat([part.flatten() for part in parts]).tolist()
    return {tuple(stream[at : at + LENGTH]) for at in range(len(stream) - LENGTH + 1)}


def test_nothing_of_the_calibration_is_trained_on(loaded: LoadedModel, text: Path) -> None:
    found, calibration = read(loaded, cut(text))
    assert (len(found.train), len(found.validation)) == (3 * 4, 2)
    seen = runs(calibration.library, *calibration.search) | runs(calibration.heldout)
    for part in (found.train, found.validation):
        assert not any(run in seen for row in part for run in runs(row))
    assert not runs(found.train) & {tuple(row.tolist()) for row in found.validation}
    assert found.note == ""


def test_the_text_behind_the_calibration_is_read_on(loaded: LoadedModel, text: Path) -> None:
    found, calibration = read(loaded, cut(text))
    assert loaded.tokenizer is not None
    stream = loaded.tokenizer(text.read_text(), add_special_tokens=False)["input_ids"]
    read_before = 10 * LENGTH
    assert calibration.heldout.flatten().tolist() == stream[read_before - 2 * LENGTH : read_before]
    after = torch.cat([found.validation, found.train]).flatten().tolist()
    assert after == stream[read_before : read_before + len(after)]


def test_a_copy_under_another_name_is_the_same_text(
    loaded: LoadedModel, text: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.txt"
    copy.write_text(text.read_text())
    ours, _ = read(loaded, cut(text))
    theirs, _ = read(loaded, cut(text), source=str(copy))
    assert torch.equal(ours.train, theirs.train)


def test_too_little_text_is_repeated_and_said(loaded: LoadedModel, text: Path) -> None:
    found, _ = read(loaded, cut(text), tokens=100_000)
    wanted = -(-100_000 // (4 * LENGTH)) * 4
    assert 0 < len(found.train) < wanted
    assert f"repeats its text {wanted / len(found.train):.1f} times" in found.note
    assert str(text) in found.note


def test_no_new_text_is_refused(loaded: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text(lines(0, 400))
    tokens = load_calibration(cut(path), loaded)
    folder = tmp_path / "tokens"
    folder.mkdir()
    every = torch.cat([tokens.library, *tokens.search, tokens.heldout])
    save_file({"tokens": every}, folder / "all.safetensors")
    with pytest.raises(DataError, match="has nothing left for healing that neither library"):
        read(loaded, cut(path), source=str(folder))


def test_sources_share_by_weight(loaded: LoadedModel, text: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text(lines(5000, 400))
    weights = {str(text): 1.0, str(other): 3.0}
    found, _ = read(loaded, cut(text), source=weights, validation_sequences=4)
    alone, _ = read(loaded, cut(text), source=str(text), steps=1, validation_sequences=1)
    ours = {tuple(row.tolist()) for row in (*alone.validation, *alone.train)}
    taken = [tuple(row.tolist()) for row in (*found.validation, *found.train)]
    places = [place for place, row in enumerate(taken) if row in ours]
    assert len(places) == len(taken) // 4 == 4
    assert places != [0, 1, 2, 3], "the sources are not mixed"


def test_what_the_model_writes_is_other_text(loaded: LoadedModel) -> None:
    found, calibration = read(loaded, cut("self"))
    searched = {tuple(row.tolist()) for part in calibration.search for row in part}
    assert not searched & {tuple(row.tolist()) for row in found.train}
    again, _ = read(loaded, cut("self"), seed=5)
    assert not torch.equal(found.train, again.train)


def test_an_encoder_writes_none(text: Path) -> None:
    with pytest.raises(DataError, match=r"heal\.source=self: .* writes no text"):
        read(tiny_loaded("bert"), cut(text), source="self")


def test_new_images(tmp_path: Path) -> None:
    loaded = tiny_loaded("vit")
    numbers = torch.arange(20).float()[:, None, None, None].expand(-1, 1, 8, 8).clone()
    save_file({"pixel_values": numbers}, tmp_path / "images.safetensors")
    found, calibration = read(loaded, cut(tmp_path))
    used = torch.cat([calibration.library, *calibration.search, calibration.heldout])
    ours = torch.cat([found.validation, found.train])[:, 0, 0, 0]
    assert sorted([*used[:, 0, 0, 0].tolist(), *ours.tolist()]) == list(range(20))
    assert "12 sequences to train on" in found.note

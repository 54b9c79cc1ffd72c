"""Calibration of models that are no decoders: special tokens, images, and what they cannot have."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers.processors import TemplateProcessing

from evocompress.core.config import CalibrationConfig
from evocompress.core.errors import DataError
from evocompress.evaluation.calibration.calibration import (
    check_calibration,
    load_calibration,
)
from evocompress.evaluation.calibration.special import special_tokens
from evocompress.models.loading import LoadedModel
from evocompress.testing.tiny import tiny_loaded

TEXT = "".join(f"Line {number} of a text, and no two lines are the same.\n" for number in range(90))
CLS, SEP = 0, 5


@pytest.fixture
def bert() -> LoadedModel:
    loaded = tiny_loaded("bert")
    assert loaded.tokenizer is not None
    loaded.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A &",
        special_tokens=[("<|endoftext|>", CLS), ("&", SEP)],
    )
    return loaded


@pytest.fixture
def vit() -> LoadedModel:
    return tiny_loaded("vit")


def config(source: Path | str, **changes: object) -> CalibrationConfig:
    sizes = {"library_sequences": 3, "search_sequences": 5, "heldout_sequences": 2, "length": 32}
    return CalibrationConfig.model_validate({"source": str(source), **sizes, **changes})


def images(folder: Path, name: str, first: int, count: int, labels: bool = True) -> Path:
    """A file of images, each of which has its number as every pixel."""
    folder.mkdir(exist_ok=True)
    numbers = torch.arange(first, first + count)
    tensors = {"pixel_values": numbers.float()[:, None, None, None].expand(-1, 1, 8, 8).clone()}
    if labels:
        tensors["labels"] = numbers % 10
    save_file(tensors, folder / f"{name}.safetensors")
    return folder


def test_each_sequence_of_an_encoder_has_its_special_tokens(
    bert: LoadedModel, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    calibration = load_calibration(config(tmp_path / "text.txt"), bert)
    sequences = torch.cat([calibration.library, *calibration.search, calibration.heldout])
    assert sequences.shape == (10, 32)
    assert (sequences[:, 0] == CLS).all() and (sequences[:, -1] == SEP).all()
    assert bert.tokenizer is not None
    expected = bert.tokenizer(TEXT, add_special_tokens=False)["input_ids"][: 10 * 30]
    assert sequences[:, 1:-1].flatten().tolist() == expected
    assert special_tokens(bert.tokenizer) == ([CLS], [SEP])
    assert calibration.pool.tokens == (64, 64, 32)


@pytest.mark.parametrize(
    ("name", "advice"), [("bert", "a text file, or datasets:NAME"), ("vit", "a folder")]
)
def test_what_writes_no_text_must_be_given_some(name: str, advice: str) -> None:
    with pytest.raises(DataError, match=f"writes no text: give {advice}"):
        load_calibration(config("self"), tiny_loaded(name))


def test_images_are_cut_into_disjoint_parts_in_order(vit: LoadedModel, tmp_path: Path) -> None:
    folder = images(tmp_path / "images", "a", 0, 4)
    images(folder, "b", 4, 8)
    calibration = load_calibration(config(folder), vit)
    parts = (calibration.library, *calibration.search, calibration.heldout)
    assert [len(part) for part in parts] == [3, 2, 2, 1, 2]
    assert torch.cat(parts)[:, 0, 3, 5].tolist() == list(range(10))
    assert calibration.labels is not None and calibration.labels.tolist() == [8, 9]
    assert calibration.length == 17
    assert calibration.pool.tokens == (34, 34, 17)


def test_held_out_images_may_lie_elsewhere_and_have_no_labels(
    vit: LoadedModel, tmp_path: Path
) -> None:
    folder = images(tmp_path / "images", "a", 0, 8)
    other = images(tmp_path / "other", "a", 50, 5, labels=False)
    calibration = load_calibration(config(folder, heldout_source=str(other)), vit)
    assert calibration.heldout[:, 0, 0, 0].tolist() == [50, 51]
    assert calibration.labels is None


def test_the_same_images_are_not_held_out(vit: LoadedModel, tmp_path: Path) -> None:
    folder = images(tmp_path / "images", "a", 0, 10)
    other = images(tmp_path / "other", "x", 4, 10)
    again = tmp_path / "again"
    again.symlink_to(folder)
    once = load_calibration(config(folder), vit)
    for name in (folder, again):
        assert load_calibration(config(folder, heldout_source=str(name)), vit).fingerprint == (
            once.fingerprint
        )
    calibration = load_calibration(config(folder, heldout_source=str(other)), vit)
    assert calibration.heldout[:, 0, 0, 0].tolist() == [8, 9] and calibration.left_out == 4
    images(tmp_path / "few", "x", 0, 9)
    with pytest.raises(
        DataError, match="only 9 images, but 10 are needed, 8 of which library or search have"
    ):
        load_calibration(config(folder, heldout_source=str(tmp_path / "few")), vit)


def test_bad_images_are_refused_by_name(vit: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="reads images, so give a folder of safetensors"):
        load_calibration(config(tmp_path / "nothing"), vit)
    folder = images(tmp_path / "images", "a", 0, 9)
    with pytest.raises(DataError, match="has only 9 images, but 10 are needed"):
        load_calibration(config(folder), vit)
    save_file({"pixel_values": torch.zeros(20, 3, 8, 8)}, folder / "a.safetensors")
    with pytest.raises(DataError, match=r"images are \(3, 8, 8\), but tiny:vit takes \(1, 8, 8\)"):
        load_calibration(config(folder), vit)
    save_file({"pixels": torch.zeros(20, 1, 8, 8)}, folder / "a.safetensors")
    with pytest.raises(DataError, match="has no tensor pixel_values"):
        load_calibration(config(folder), vit)
    (folder / "a.safetensors").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"a\.safetensors cannot be read"):
        load_calibration(config(folder), vit)
    save_file(
        {"pixel_values": torch.zeros(20, 1, 8, 8), "labels": torch.zeros(20)},
        folder / "a.safetensors",
    )
    with pytest.raises(DataError, match="labels must hold an integer for each image"):
        load_calibration(config(folder), vit)


def test_special_tokens_must_leave_room_for_text(bert: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    check_calibration(config(tmp_path / "text.txt", length=3), bert)
    with pytest.raises(DataError, match="length is 2, but the 2 special tokens .*: raise calib"):
        check_calibration(config(tmp_path / "text.txt", length=2), bert)

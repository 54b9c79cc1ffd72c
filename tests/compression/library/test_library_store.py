"""Reading: memory-mapped, and every kind of damage is named."""

import json
import sys
from pathlib import Path

import pytest
import torch
from library_setting import Setting
from safetensors.torch import load_file

from evocompress.compression.library import open_library
from evocompress.compression.library.files import TensorSpec, TensorWriter, durable_file
from evocompress.core.errors import LibraryError
from evocompress.core.types import DENSE, Level
from evocompress.testing.tiny import tiny_loaded

UNIT = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    setting = Setting()
    return setting, setting.build(tmp_path_factory.mktemp("library"))


@pytest.fixture
def copied(made, tmp_path):
    """A copy of the library's folder that a test may damage, and its model."""
    setting, library = made
    for file in library.path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path, setting.loaded


def reopened(copied):
    return open_library(*copied)


def mapping_of(pointer):
    """The file that the memory at an address is mapped from."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(part, 16) for part in line.split()[0].split("-"))
        if begin <= pointer < end:
            return line.split()[-1]
    raise AssertionError("not mapped")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_loaded_tensors_are_mapped_from_the_file(made):
    setting, library = made
    level = setting.wanted[UNIT][1]
    tensor = library.load(UNIT, level)["weight"]
    assert mapping_of(tensor.data_ptr()) == str(library.path / "block-0001.safetensors")
    assert tensor.data_ptr() == library.load(UNIT, level)["weight"].data_ptr()


def test_tensors_outlive_the_library(copied):
    library = reopened(copied)
    level = library.levels(UNIT)[2]
    tensor = library.load(UNIT, level)["weight"]
    expected = tensor.clone()
    del library
    assert torch.equal(tensor, expected)


def test_files_are_plain_safetensors_with_aligned_tensors(made):
    setting, library = made
    content = load_file(library.path / "block-0001.safetensors")
    units = [unit for unit in setting.wanted if unit.startswith("model.layers.1.")]
    assert set(content) == {
        f"{u}::{level.key}::weight" for u in units for level in setting.wanted[u][1:]
    }
    for unit in units:
        for level in setting.wanted[unit][1:]:
            tensor = library.load(unit, level)["weight"]
            assert torch.equal(tensor, content[f"{unit}::{level.key}::weight"])
            assert tensor.data_ptr() % 64 == 0


def test_verify_passes_on_a_good_library(copied):
    reopened(copied).verify()


def test_verify_finds_a_flipped_bit(copied):
    file = copied[0] / "block-0002.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(LibraryError, match="block-0002.safetensors is corrupted"):
        reopened(copied)


def test_a_truncated_file_is_named(copied):
    file = copied[0] / "block-0002.safetensors"
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[: size // 2])
    with pytest.raises(LibraryError, match=f"has {size // 2} bytes instead of {size}"):
        reopened(copied)


def test_a_missing_file_is_named(copied):
    (copied[0] / "block-0000.safetensors").unlink()
    with pytest.raises(LibraryError, match="block-0000.safetensors is missing"):
        reopened(copied)


def test_a_header_that_breaks_after_opening_is_named(copied):
    library = reopened(copied)
    file = copied[0] / "block-0001.safetensors"
    content = file.read_bytes()
    file.write_bytes(b"\xff" * 16 + content[16:])
    with pytest.raises(LibraryError, match="block-0001.safetensors is damaged"):
        library.load(UNIT, library.levels(UNIT)[1])


def test_an_unfinished_library_is_refused(copied):
    manifest = json.loads((copied[0] / "manifest.json").read_text())
    del manifest["blocks"]["1"], manifest["xxh3"]
    (copied[0] / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(LibraryError, match="lacks 1 of 3 blocks"):
        reopened(copied)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"format": 1', "manifest.json is damaged"),
        ("[]", "manifest.json is damaged"),
        ('{"format": 2}', "manifest.json is damaged"),
        ('{"format": 1}', "has format 1, but this version reads 2"),
        ('{"format": 99}', "has format 99"),
    ],
)
def test_a_bad_manifest_is_refused(copied, text, words):
    (copied[0] / "manifest.json").write_text(text)
    with pytest.raises(LibraryError, match=words):
        reopened(copied)


def test_a_manifest_that_is_whole_is_read_as_it_was(made, copied):
    assert reopened(copied).manifest == made[1].manifest


@pytest.mark.parametrize("name", ["../block_000", "/etc/passwd", "."])
def test_a_file_outside_of_the_library_is_named(copied, name):
    file = copied[0] / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["xxh3"]
    manifest["blocks"]["0"]["file"] = name
    file.write_text(json.dumps(manifest))
    with pytest.raises(LibraryError, match="a file lies outside of the library"):
        reopened(copied)


@pytest.mark.parametrize(
    "change",
    [
        {"blocks": {"0": {"file": None}}},
        {"blocks": {"0": None}},
        {"blocks": []},
        {"units": None},
        {"recipe": {}},
        {"recipe": {"levels": None}},
        {"recipe": {"levels": {UNIT: [{"zeroes": 3}]}}},
        {"recipe": {"levels": {UNIT: 3}}},
        {"tokens": "many"},
        {"blocks": {"0": {"file": "../block-0000.safetensors"}}},
    ],
)
def test_a_manifest_of_another_shape_is_one_line(copied, change):
    file = copied[0] / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["xxh3"]
    for key, value in change.items():
        merged = isinstance(value, dict) and value
        manifest[key] = _merged(manifest[key], value) if merged else value
    file.write_text(json.dumps(manifest))
    with pytest.raises(LibraryError, match="manifest.json is damaged or of another kind"):
        reopened(copied)


def _merged(old, new):
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return old | {key: _merged(old.get(key), value) for key, value in new.items()}


def test_a_library_without_fast_checksums_is_verified_as_well(copied):
    file = copied[0] / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["xxh3"]
    for record in manifest["blocks"].values():
        del record["xxh3"]
    file.write_text(json.dumps(manifest))
    reopened(copied)
    flip(copied[0] / "block-0000.safetensors", 0.5)
    with pytest.raises(LibraryError, match="block-0000.safetensors is corrupted"):
        reopened(copied)


@pytest.mark.parametrize("place", [0.0, 0.01, 0.3, 0.6, 0.999])
@pytest.mark.parametrize("name", ["block-0001.safetensors", "manifest.json"])
def test_flipped_bits_are_found_when_a_library_is_opened(copied, name, place):
    flip(copied[0] / name, place)
    with pytest.raises(LibraryError, match=name):
        reopened(copied)


def flip(file, place):
    content = bytearray(file.read_bytes())
    content[int(place * len(content))] ^= 4
    file.write_bytes(content)


def test_a_missing_library_is_refused(made, tmp_path):
    with pytest.raises(LibraryError, match="no level library at"):
        open_library(tmp_path / "nothing", made[0].loaded)


def test_a_library_of_another_model_is_refused(copied):
    with pytest.raises(LibraryError, match="was made for model"):
        open_library(copied[0], tiny_loaded("opt"))


def test_levels_that_are_not_stored_are_refused(made):
    _, library = made
    for level in (DENSE, Level(zeros=1)):
        with pytest.raises(LibraryError, match=f"stores no {level.key} of {UNIT}"):
            library.load(UNIT, level)


def test_errors_are_one_line(copied):
    (copied[0] / "manifest.json").write_text("\n\n{")
    with pytest.raises(LibraryError) as caught:
        reopened(copied)
    assert "\n" not in str(caught.value)


def test_a_failed_write_leaves_nothing(tmp_path):
    with (
        pytest.raises(LibraryError, match="disk full while writing"),
        durable_file(tmp_path / "file") as file,
    ):
        file.write(b"half")
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_a_writer_refuses_what_was_not_announced(tmp_path):
    with open(tmp_path / "file", "wb") as file:
        writer = TensorWriter(file, {"a": TensorSpec((2, 3), torch.float32)})
        with pytest.raises(ValueError, match="not announced"):
            writer.add("a", torch.zeros(3, 2))
        with pytest.raises(LibraryError, match="torch.int16 are not supported"):
            TensorWriter(file, {"a": TensorSpec((2, 3), torch.int16)})

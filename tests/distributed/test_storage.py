"""Libraries in shared storage, and the copies of nodes."""

import os
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pytest

from evocompress.compression.library.files import TensorWriter, durable_file
from evocompress.compression.library.manifest import NAME, BlockRecord, LibraryRecipe, Manifest
from evocompress.core.errors import ConfigError
from evocompress.distributed.storage import MANIFEST, fetched, mended, publish


@pytest.fixture
def library(tmp_path):
    folder = tmp_path / "library"
    folder.mkdir()
    for name in ("block-0000.safetensors", "block-0001.safetensors", MANIFEST):
        (folder / name).write_bytes(name.encode() * 100)
    (folder / ".lock").touch()
    return folder


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != ".lock"}


@pytest.fixture(params=["folder", "memory://shared"])
def storage(request, tmp_path):
    yield str(tmp_path / "storage") if request.param == "folder" else request.param
    fsspec.filesystem("memory").store.clear()


def test_the_manifest_has_the_name_that_libraries_give_it():
    assert MANIFEST == NAME


def test_a_copy_is_the_library(library, storage, tmp_path):
    url = publish(library, "one", storage)
    copy = fetched(url, tmp_path / "cache")
    assert copy == tmp_path / "cache" / "one" and contents(copy) == contents(library)


def test_what_is_there_is_neither_sent_nor_copied_again(library, storage, tmp_path):
    url = publish(library, "one", storage)
    copy = fetched(url, tmp_path / "cache")
    for file in library.iterdir():
        file.write_bytes(b"other")
    assert publish(library, "one", storage) == url
    before = copy.stat().st_mtime_ns
    assert fetched(url, tmp_path / "cache") == copy and copy.stat().st_mtime_ns == before
    assert contents(copy)[MANIFEST] == MANIFEST.encode() * 100


def test_what_was_sent_in_part_is_sent_again(library, storage, tmp_path):
    url = publish(library, "one", storage)
    files, root = fsspec.core.url_to_fs(url)
    files.rm(f"{root}/{MANIFEST}")
    with pytest.raises(ConfigError, match=r"ray\.storage: .* there is no manifest\.json"):
        fetched(url, tmp_path / "cache")
    assert not [entry for entry in (tmp_path / "cache").iterdir() if entry.is_dir()]
    publish(library, "one", storage)
    assert contents(fetched(url, tmp_path / "cache")) == contents(library)


def test_processes_of_a_node_copy_once(library, storage, tmp_path):
    url = publish(library, "one", storage)
    with ThreadPoolExecutor(8) as threads:
        copies = list(threads.map(lambda _: fetched(url, tmp_path / "cache"), range(8)))
    assert set(copies) == {tmp_path / "cache" / "one"} and contents(copies[0]) == contents(library)


def test_what_a_killed_process_left_is_no_hindrance(library, storage, tmp_path):
    url = publish(library, "one", storage)
    left = tmp_path / "cache" / ".one.17.tmp"
    left.mkdir(parents=True)
    mine = tmp_path / "cache" / f".one.{os.getpid()}.tmp"
    mine.mkdir()
    assert contents(fetched(url, tmp_path / "cache")) == contents(library)
    assert not left.exists() and not mine.exists()


def test_storage_that_cannot_be_used_is_one_line(library):
    with pytest.raises(ConfigError, match=r"ray\.storage: nosuch://x/one cannot be used") as caught:
        publish(library, "one", "nosuch://x")
    assert "\n" not in str(caught.value)


def test_a_damaged_copy_is_made_anew_and_a_good_one_stays(storage, tmp_path):
    library = tmp_path / "true"
    library.mkdir()
    with durable_file(library / "block-0000.safetensors") as file:
        writer = TensorWriter(file, {})
    record = BlockRecord("block-0000.safetensors", writer.bytes, writer.sha256, {}, {}, writer.xxh3)
    recipe = LibraryRecipe("model", "calibration", None, None, None, "dense", 0.01, {}, {})
    Manifest(recipe, {}, 0, 0, {}, {0: record}).write(library)
    url, cache = publish(library, "true", storage), tmp_path / "cache"
    copied = fetched(url, cache)
    place = copied.stat().st_ino
    assert mended(url, cache) == copied and copied.stat().st_ino == place
    for name in ("block-0000.safetensors", MANIFEST):
        whole = (copied / name).read_bytes()
        (copied / name).write_bytes(whole[:-3] + b"x" + whole[-2:])
        assert contents(mended(url, cache)) == contents(library)
    (copied / MANIFEST).unlink()
    assert contents(mended(url, cache)) == contents(library)

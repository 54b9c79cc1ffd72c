from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from pydantic import BaseModel
from safetensors import SafetensorError
from safetensors.torch import save_file

from evocompress.cli import commands
from evocompress.core.errors import ExportError, RunError
from evocompress.core.files import (
    check_sealed,
    naming_disk_errors,
    read_as,
    read_json,
    write_json,
    write_sealed,
    write_text,
)
from evocompress.core.leftovers import clear_leftovers
from evocompress.export.folder import whole_folder


class Shape(BaseModel):
    name: str
    values: tuple[float, ...]


BROKEN = {
    "empty": b"",
    "cut off": b'{"name": "x", "val',
    "not UTF-8": b'{"name": "\xff\xfe", "values": []}',
    "deep": b"[" * 100_000,
    "deep and closed": b"[" * 100_000 + b"]" * 100_000,
    "a long number": b'{"name": "x", "values": [' + b"9" * 5000 + b"]}",
    "an empty object": b"{}",
    "null": b"null",
    "a list": b"[1, 2]",
    "text": b'"text"',
    "another type": b'{"name": 3, "values": []}',
    "half a letter": b'{"name": "\\ud800", "values": []}',
    "with NULs": bytes(100),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_whatever_a_file_holds_the_error_is_one_line_with_its_name(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"file\.json .*: write the file anew$") as caught:
        read_as(path, Shape)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nowhere.json does not exist"):
        read_json(tmp_path / "nowhere.json")
    with pytest.raises(ExportError, match="cannot be read: Is a directory"):
        read_json(tmp_path, kind=ExportError)


@pytest.mark.parametrize(
    "data",
    [{"a": 1, "b": [0.1, -0.0, None, "é"], "c": {"1": True}}, [{"a": 1e300}, {"b": 2}], [], [1], 7],
)
def test_what_is_written_is_read_without_its_checksum(tmp_path: Path, data: object) -> None:
    write_json(tmp_path / "file.json", data)
    assert read_json(tmp_path / "file.json") == data


@pytest.mark.parametrize("data", [{"level": 3, "value": 0.25}, [{"id": "a"}, {"id": "b"}]])
def test_any_flipped_bit_is_found_or_changes_nothing(tmp_path: Path, data: object) -> None:
    path = tmp_path / "file.json"
    write_json(path, data)
    content, refused = path.read_bytes(), 0
    for place in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            found = read_json(path)
        except RunError:
            refused += 1
        else:
            assert _without_renamed_checksums(found, data)
    assert refused > 4 * len(content)


def _without_renamed_checksums(found: object, data: object) -> bool:
    """Whether all data are there; a checksum under a damaged key is a key more."""
    if isinstance(data, list):
        assert isinstance(found, list)
        return all(a.items() <= b.items() for a, b in zip(data, found, strict=True))
    assert isinstance(data, dict) and isinstance(found, dict)
    return data.items() <= found.items()


def test_an_edit_is_named_and_can_be_meant(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"name": "x", "values": [1.0]})
    edited = json.loads(path.read_text()) | {"name": "y"}
    path.write_text(json.dumps(edited))
    with pytest.raises(RunError, match='changed since it was written.*remove each "xxh3"'):
        read_as(path, Shape)
    del edited["xxh3"]
    path.write_text(json.dumps(edited))
    assert read_as(path, Shape) == Shape(name="y", values=(1.0,))


NUMBERS = {
    errno.ENOSPC: "disk full",
    errno.EDQUOT: "disk quota exceeded",
    errno.EFBIG: "file larger than allowed",
    errno.EIO: "input/output error",
    errno.EROFS: "read-only",
    errno.EACCES: "permission denied",
}


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("made", ["by the system", "by safetensors"])
def test_errors_of_the_disk_are_told_by_number_and_by_text(
    tmp_path: Path, number: int, made: str
) -> None:
    text = f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})"
    error = OSError(number, "x") if made == "by the system" else RuntimeError(text)
    with pytest.raises(RunError, match=NUMBERS[number]), naming_disk_errors(tmp_path / "a"):
        raise error
    with pytest.raises(ExportError, match=NUMBERS[number]), whole_folder(tmp_path / "out"):
        raise error
    assert not any(tmp_path.iterdir())


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), naming_disk_errors(tmp_path / "a"):
        raise ZeroDivisionError
    with pytest.raises(RuntimeError, match="os error 2"), naming_disk_errors(tmp_path / "a"):
        raise RuntimeError("No such file or directory (os error 2)")


def test_a_limit_of_file_size_is_one_line_for_text_and_tensors(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(RunError, match="file larger than allowed while writing .*text"):
            write_text(tmp_path / "text", "x" * 10_000)
        larger = pytest.raises(ExportError, match="file larger than allowed")
        with larger, whole_folder(tmp_path / "out") as folder:
            save_file({"a": torch.zeros(10_000)}, folder / "a.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not any(tmp_path.iterdir())


def test_errors_of_the_disk_that_safetensors_raises_anywhere_end_a_command_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(text: str) -> NoReturn:
        raise SafetensorError(text)

    monkeypatch.setattr("sys.argv", ["evocompress", "report", "runs/x"])
    monkeypatch.setattr(commands, "stop_on_signals", lambda: None)
    monkeypatch.setattr("evocompress.api.report", lambda _: fail("I/O error (os error 5)"))
    with pytest.raises(SystemExit, match="^error: SafetensorError: I/O error"):
        commands.main()
    monkeypatch.setattr("evocompress.api.report", lambda _: fail("a mistake of ours"))
    with pytest.raises(SafetensorError):
        commands.main()


def test_what_is_written_has_reached_the_disk_before_it_takes_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(handle: int) -> None:
        done.append("folder" if Path(f"/proc/self/fd/{handle}").resolve().is_dir() else "file")
        fsync(handle)

    def renamed(old: Path, new: Path) -> None:
        done.append("renamed")
        replace(old, new)

    monkeypatch.setattr("os.fsync", synced)
    monkeypatch.setattr("os.replace", renamed)
    write_text(tmp_path / "a", "text")
    assert done == ["file", "renamed", "folder"]


def test_the_mode_of_what_is_written_is_the_usual_one(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    write_text(tmp_path / "a", "text")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "usual").stat().st_mode


HALF = """
import sys, time
from pathlib import Path
from evocompress.core.files import replacing
from evocompress.core.leftovers import only_writer, scratch_folder, temporary_name
folder = Path(sys.argv[1])
with replacing(folder / "winner.json") as file, scratch_folder(folder, "uniform") as scratch:
    with only_writer(folder / "out"):
        (half := temporary_name(folder / "out")).mkdir()
        for path in (scratch / "weights", half / "weights", file):
            path.write_text("half")
        print("ready", flush=True)
        time.sleep(60)
"""


def begun(folder: Path) -> subprocess.Popen[str]:
    """A process in the middle of writing a file and two folders."""
    process = subprocess.Popen(
        [sys.executable, "-c", HALF, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def test_a_living_process_keeps_its_temporaries_and_a_dead_one_leaves_none(tmp_path: Path) -> None:
    process = begun(tmp_path)
    try:
        before = sorted(tmp_path.rglob("*"))
        clear_leftovers(tmp_path)
        assert sorted(tmp_path.rglob("*")) == before
        refused = pytest.raises(RunError, match="out is being written by another process")
        with refused, whole_folder(tmp_path / "out"):
            pytest.fail("two write the same folder")
        assert sorted(tmp_path.rglob("*")) == before
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    clear_leftovers(tmp_path)
    assert not any(tmp_path.iterdir())


def test_temporaries_of_older_versions_are_known(tmp_path: Path) -> None:
    (tmp_path / ".winner.json.123.tmp").touch()
    (tmp_path / ".out.7.tmp").mkdir()
    for name in ("winner.json", ".hidden.tmp", "notes.12.tmp", ".out.v2.tmp"):
        (tmp_path / name).touch()
    clear_leftovers(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"winner.json", ".hidden.tmp", "notes.12.tmp", ".out.v2.tmp"}


def test_text_with_a_checksum_as_its_last_comment(tmp_path: Path) -> None:
    path, text = tmp_path / "config.yaml", "seed: 3\nname: é\n"
    write_sealed(path, text)
    assert path.read_text().startswith(text)
    check_sealed(path, "restore the file")
    path.write_text(path.read_text().replace("3", "7", 1))
    with pytest.raises(RunError, match="config.yaml was changed since.*: restore the file, or"):
        check_sealed(path, "restore the file")
    path.write_text(text.replace("3", "7"))
    check_sealed(path, "restore the file")

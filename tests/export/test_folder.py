from __future__ import annotations

import os
from pathlib import Path

import pytest

from evocompress.core.errors import ExportError
from evocompress.export.folder import check_target, whole_folder


def make(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / "content").write_text(text)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("pid", [os.getpid(), 7], ids=["own", "another"])
def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path, pid: int) -> None:
    make(tmp_path / f".out.{pid}.tmp", "half")
    make(tmp_path / f".out.{pid}.old", "replaced")
    make(tmp_path / "out", "finished")
    with whole_folder(tmp_path / "out") as folder:
        assert names(folder) == []
        (folder / "content").write_text("new")
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "content").read_text() == "new"


def test_what_a_killed_process_had_moved_away_comes_back(tmp_path: Path) -> None:
    make(tmp_path / ".out.7.old", "finished")
    make(tmp_path / ".out.7.tmp", "new but not in place")
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "out"):
        raise KeyboardInterrupt
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "content").read_text() == "finished"


def test_leftovers_of_other_targets_are_left_alone(tmp_path: Path) -> None:
    others = [".out.v2.7.tmp", ".out.7.tmp.8.tmp", ".output.7.tmp", "out.7.tmp", ".oXut.7.old"]
    for name in others:
        make(tmp_path / name, "theirs")
    with whole_folder(tmp_path / "out"):
        pass
    assert names(tmp_path) == sorted([*others, "out"])


def test_an_existing_folder_can_be_removed_or_avoided(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="exists: choose another folder or remove it"):
        check_target(tmp_path, overwrite=False)

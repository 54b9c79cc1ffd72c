import errno
import os
from pathlib import Path

import pytest
from fabricate import run_folder

from evocompress.core.errors import RunError
from evocompress.core.leftovers import temporary_file
from evocompress.report import write_report


def test_what_a_killed_report_left_is_cleared(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    dead = [folder / f".{name}.7.0123abcd.tmp" for name in ("report.html", "summary.md")]
    others = [folder / ".winner.json.7.0123abcd.tmp", folder / ".notes.tmp"]
    for path in (*dead, *others):
        path.touch()
    with temporary_file(folder / "report.html") as alive:
        write_report(folder)
        assert alive.exists()
    assert not any(path.exists() for path in dead)
    assert all(path.exists() for path in others), "the run's own are cleared under its lock"


def test_a_report_of_a_read_only_run_says_what_it_cannot_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_folder(tmp_path / "run")
    left = folder / ".summary.md.7.0123abcd.tmp"
    left.touch()
    really = os.open

    def read_only(path: str, flags: int, *mode: int) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, "Read-only file system", path)
        return really(path, flags, *mode)

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(RunError, match="the disk is read-only while writing .*summary.md") as error:
        write_report(folder)
    assert "\n" not in str(error.value) and left.exists()

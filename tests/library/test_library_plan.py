import shutil
from collections import namedtuple

import psutil
import pytest

from evocompress.errors import LibraryError
from evocompress.library import plan_library
from evocompress.library.plan import LibraryPlan, check_fits

Usage = namedtuple("Usage", "total used free")


def planned(setting, **changes):
    wanted = changes.get("wanted", setting.wanted)
    config = setting.config.model_copy(update=changes.get("config", {}))
    return plan_library(setting.loaded, wanted, setting.tokens, config, batch=2)


def test_disk_is_what_the_files_take(setting, tmp_path):
    library = setting.build(tmp_path)
    size = sum(file.stat().st_size for file in library.path.glob("*.safetensors"))
    assert size <= planned(setting).disk_bytes <= 1.2 * size


def test_memory_grows_with_statistics_and_levels(setting):
    full = planned(setting).memory_bytes
    fewer = {unit: levels[:2] for unit, levels in setting.wanted.items()}
    assert planned(setting, wanted=fewer).memory_bytes < full
    by_norms = planned(setting, config={"criterion": "wanda"}).memory_bytes
    by_nothing = planned(setting, config={"criterion": "magnitude"}).memory_bytes
    assert by_nothing < by_norms < full


def test_a_library_larger_than_the_disk_is_refused_before_anything_is_written(
    setting, tmp_path, monkeypatch
):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(LibraryError, match="needs 1 MiB on the disk of .* which has 0 MiB free"):
        setting.build(tmp_path / "library")
    assert not (tmp_path / "library").exists()


def test_a_library_larger_than_the_memory_is_refused(tmp_path, monkeypatch):
    Memory = namedtuple("Memory", "available")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory(2**20))
    check_fits(LibraryPlan(0, 2**20), tmp_path)
    with pytest.raises(LibraryError, match="needs 2 MiB of memory, but 1 MiB is available"):
        check_fits(LibraryPlan(0, 2**21), tmp_path)


def test_a_finished_part_needs_no_room(setting, tmp_path, monkeypatch):
    library = setting.build(tmp_path)
    lost = library.path / "block-0001.safetensors"
    third = planned(setting).disk_bytes // 3
    lost.unlink()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 0, third + 1000))
    setting.build(tmp_path)
    assert lost.exists()

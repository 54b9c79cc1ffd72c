import shutil
from collections import namedtuple

import psutil
import pytest
from library_setting import Setting, matrix_units

from evocompress.compression.library import plan_library
from evocompress.compression.library.plan import LibraryPlan, check_fits
from evocompress.core.errors import LibraryError

Usage = namedtuple("Usage", "total used free")


def planned(setting, **changes):
    wanted = changes.get("wanted", setting.wanted)
    config = setting.config.model_copy(update=changes.get("config", {}))
    return plan_library(setting.loaded, wanted, setting.tokens, config, batch=2)


def test_disk_is_what_the_files_take(setting, tmp_path):
    library = setting.build(tmp_path)
    size = sum(file.stat().st_size for file in library.path.glob("*.safetensors"))
    assert planned(setting).disk_bytes == size


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
@pytest.mark.parametrize("criterion", ["flap", "obs_structured"])
@pytest.mark.parametrize("matrices", [True, False])
def test_disk_of_widths_is_what_the_files_take(model_type, criterion, matrices, tmp_path):
    setting = Setting(model_type, widths=True, matrices=matrices, width_criterion=criterion)
    library = setting.build(tmp_path)
    size = sum(file.stat().st_size for file in library.path.glob("*.safetensors"))
    assert planned(setting).disk_bytes == size


def test_memory_counts_what_widths_need():
    def memory(**options):
        return planned(Setting(widths=True, matrices=False, **options)).memory_bytes

    by_weights = memory(width_criterion="magnitude")
    assert by_weights < memory(width_criterion="wanda") < memory(width_criterion="obs_structured")
    assert memory(width_criterion="magnitude", reconstruct=True) > by_weights
    gradients = sum(unit.numel for unit in matrix_units(Setting().loaded)) * 4
    assert memory(width_criterion="taylor") > by_weights + gradients


def test_the_cache_is_counted_where_matrices_are_narrow_and_sparse(tmp_path, monkeypatch):
    setting = Setting(widths=True)
    most = planned(setting).cache_bytes
    assert planned(setting, config={"cache_mib": 1}).cache_bytes == 2**20 < most < 2**27
    assert planned(Setting()).cache_bytes == 0
    assert planned(Setting(widths=True, matrices=False)).cache_bytes == 0
    setting.build(tmp_path)
    Memory = namedtuple("Memory", "available")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory(2**20))
    with pytest.raises(LibraryError, match="1 MiB is available: give a smaller library.cache_mib"):
        setting.build(tmp_path)
    setting.config = setting.config.model_copy(update={"cache_mib": 1})
    setting.build(tmp_path)


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

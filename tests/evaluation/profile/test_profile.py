"""The tables' files: written once, reused, and refused where they do not belong."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evocompress.core.config import LatencyConfig
from evocompress.core.errors import ConfigError, RunError
from evocompress.core.files import read_json
from evocompress.evaluation.profile import (
    check_table,
    profile,
    read_table,
    table_path,
    table_rows,
    tables,
    timing,
)
from evocompress.evaluation.profile.tables import write_table
from evocompress.space.costs.latency import LatencyTable
from evocompress.testing.tiny import tiny_loaded

CONFIG = LatencyConfig(prefill=(1, 16), decode=(1, 8), repeats=3, validation=4)


@pytest.fixture(scope="module")
def loaded():
    return tiny_loaded(layers=2)


@pytest.fixture(scope="module")
def table(loaded, tmp_path_factory) -> LatencyTable:
    path = tmp_path_factory.mktemp("tables") / "new" / "table.json"
    return profile(loaded, CONFIG.model_copy(update={"table": path}), progress=ignore)


def ignore(done, total, text):
    assert 0 < done <= total


def must_not_measure(done, total, text):
    raise AssertionError("a table that is there is not measured again")


def test_a_measured_table_is_written_and_reused(loaded, table, tmp_path):
    path = tmp_path / "table.json"
    write_table(path, table)
    config = CONFIG.model_copy(update={"table": path})
    assert profile(loaded, config, progress=must_not_measure) == table
    assert LatencyTable.from_json(read_json(path), "it") == table


def test_a_table_can_be_measured_anew(loaded, table, tmp_path):
    path = tmp_path / "table.json"
    write_table(path, replace(table, prefill=replace(table.prefill, base=77.0)))
    config = CONFIG.model_copy(update={"table": path})
    assert profile(loaded, config, progress=ignore, anew=True).prefill.base < 77
    assert read_table(path).prefill.base < 77


def test_what_is_measured_is_written_down(loaded, table):
    assert table.made.device.startswith("cpu: ")
    assert table.made.dtype == "float32"
    assert table.made.threads == torch.get_num_threads()
    assert table.made.model == loaded.fingerprint
    assert (table.made.prefill, table.made.decode) == ((1, 16), (1, 8))
    assert table.prefill.full == table.decode.full == ((2, 2), 128)
    assert len(table.prefill.errors) == len(table.decode.errors) == 4
    assert table.prefill.dense > 0 and table.decode.dense > 0


def test_the_model_is_dense_afterwards(loaded, table):
    assert [p.shape for p in loaded.model.parameters()] == [
        p.shape for p in tiny_loaded(layers=2).model.parameters()
    ]


def test_the_default_file_is_named_by_device_dtype_and_model(loaded, monkeypatch, tmp_path):
    monkeypatch.setenv("EVOCOMPRESS_CACHE", str(tmp_path))
    path = table_path(loaded, CONFIG)
    assert path.parent == tmp_path / "latency"
    assert path.name.startswith("cpu-") and f"-float32-{loaded.fingerprint}-" in path.name
    others = [
        CONFIG.model_copy(update=change) for change in ({"prefill": (1, 17)}, {"decode": (2, 8)})
    ]
    assert len({path, *(table_path(loaded, other) for other in others)}) == 3
    assert table_path(loaded, CONFIG.model_copy(update={"repeats": 9, "force": True})) == path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"device": "cuda: H200"}, r"device cuda: H200, here "),
        ({"dtype": "bfloat16"}, "dtype bfloat16, here float32"),
        ({"threads": 77}, "threads 77, here"),
        ({"prefill": (1, 512)}, r"prefill \(1, 512\), here \(1, 16\)"),
        ({"decode": (4, 8)}, r"decode \(4, 8\), here \(1, 8\)"),
        ({"model": "0123"}, "model 0123, here"),
        ({"method": 0}, f"method 0, here {timing.METHOD}"),
    ],
)
def test_a_table_of_another_case_is_refused_unless_forced(loaded, table, tmp_path, change, words):
    foreign = replace(table, made=replace(table.made, **change))
    path = tmp_path / "foreign.json"
    write_table(path, foreign)
    config = CONFIG.model_copy(update={"table": path})
    with pytest.raises(ConfigError, match=words) as caught:
        profile(loaded, config, progress=must_not_measure)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert "profile --anew" in str(caught.value) and "latency.force" in str(caught.value)
    with pytest.raises(ConfigError, match=r"name=\.\.\.$"):
        check_table(foreign, loaded, config, path, remedy=tables.NEW_RUN)
    forced = config.model_copy(update={"force": True})
    assert profile(loaded, forced, progress=must_not_measure) == foreign


def test_a_table_of_other_widths_is_refused_even_if_forced(table):
    wider = tiny_loaded(layers=2, hidden=96)
    forced = CONFIG.model_copy(update={"force": True})
    for remedy, words in ((None, "--anew"), (tables.NEW_RUN, "name=")):
        with pytest.raises(ConfigError, match=f"of a model of other widths: .*{words}"):
            check_table(table, wider, forced, Path("table.json"), remedy=remedy)


def test_a_table_that_tells_no_method_is_neither_found_nor_used(
    loaded, table, monkeypatch, tmp_path
):
    monkeypatch.setenv("EVOCOMPRESS_CACHE", str(tmp_path))
    now = table_path(loaded, CONFIG)
    monkeypatch.setattr(tables, "METHOD", 0)
    assert table_path(loaded, CONFIG) != now
    monkeypatch.undo()
    data = table.to_json()
    del data["made"]["method"]
    older = LatencyTable.from_json(data, "older.json")
    with pytest.raises(ConfigError, match="method 0"):
        check_table(older, loaded, CONFIG, tmp_path / "older.json")


def test_files_that_are_no_tables_are_refused(loaded, tmp_path):
    path = tmp_path / "table.json"
    config = CONFIG.model_copy(update={"table": path})
    path.write_text("[")
    with pytest.raises(RunError, match="is damaged"):
        profile(loaded, config, progress=must_not_measure)
    path.write_text("{}")
    with pytest.raises(ConfigError, match="is no latency table"):
        profile(loaded, config, progress=must_not_measure)


def test_rows_name_every_part_once(table):
    rows = table_rows(table)
    assert rows[0] == ("milliseconds", "prefill 1 x 16", "decoding step 1 x 8")
    names = [name for name, _, _ in rows]
    assert len(set(names)) == len(names)
    assert {"attention, 2 x 1 heads", "MLP, 96 channels", "dense model"} <= set(names)
    values = dict((name, value) for name, value, _ in rows)
    assert values["dense model"] == f"{1e3 * table.prefill.dense:.3f}"
    assert values["MLP, 128 channels"] == f"{1e3 * table.prefill.mlp[128]:.3f}"
    assert values["CUDA graph"] == "no"

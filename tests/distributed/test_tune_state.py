"""Which of the states that Tune left are read, and what becomes of the others."""

from types import SimpleNamespace

import pytest

from evocompress.core.errors import RunError
from evocompress.core.progress import Silent
from evocompress.distributed import sweep as sweeps
from evocompress.distributed.signature import is_own, sign
from evocompress.pipeline.sweep import SweepConfig, SweepFolder, begin_sweep
from evocompress.pipeline.sweep.trials import trial_of

pytest.importorskip("ray")

pytestmark = pytest.mark.timeout(60)

BASE = {"model": {"source": "m"}, "space": {"drop": {}}}


def test_only_folders_of_ones_own_are_unpickled(tmp_path, monkeypatch):
    monkeypatch.setenv("EVOCOMPRESS_CACHE", str(tmp_path / "cache"))
    mine = tmp_path / "mine"
    assert not is_own(mine)
    sign(mine)
    assert is_own(mine)
    moved = mine.rename(tmp_path / "moved")
    assert not is_own(moved), "it may have come from anywhere"
    monkeypatch.setenv("EVOCOMPRESS_CACHE", str(tmp_path / "other"))
    sign(tmp_path / "yours")
    monkeypatch.setenv("EVOCOMPRESS_CACHE", str(tmp_path / "cache"))
    assert not is_own(tmp_path / "yours")


@pytest.mark.parametrize(
    "origin", ["unknown", "own, cut off", "own, of a kill", "own, of other workers"]
)
def test_tunes_state_that_is_foreign_or_damaged_is_not_read(tmp_path, monkeypatch, origin):
    sweep = SweepConfig(name="s", runs=tmp_path, run=BASE, vary={"seed": [0]})
    folder, begun = SweepFolder(sweep.folder), []
    monkeypatch.setenv("EVOCOMPRESS_CACHE", str(tmp_path / "cache"))
    begin_sweep(folder, sweep)
    folder.tune.mkdir()
    if origin != "unknown":
        sign(folder.tune)
    (folder.tune / "tuner.pkl").write_bytes(b"anything")
    (folder.tune / "workers").write_text("3" if origin == "own, of other workers" else "auto")
    state = {"own, cut off": '{"trial_data": [', "own, of a kill": None}.get(origin, "{}")
    if state is not None:
        (folder.tune / "experiment_state-1.json").write_text(state)

    def new(sweep, place, trainable):
        begun.append(is_own(place) and not (place / "tuner.pkl").exists())
        return SimpleNamespace(fit=lambda: [])

    monkeypatch.setattr(sweeps, "_trainable", lambda sweep, force: None)
    monkeypatch.setattr(sweeps, "new_tuner", new)
    monkeypatch.setattr("ray.tune.Tuner.restore", None)
    sweeps._run(sweep, folder, Silent(), force=False)
    assert begun == [True] and (folder.tune / "workers").read_text() == "auto"


def test_a_damaged_record_does_not_cost_tune_its_state(tmp_path, monkeypatch):
    sweep = SweepConfig(name="s", runs=tmp_path, run=BASE, vary={"seed": [0]})
    folder = SweepFolder(sweep.folder)
    monkeypatch.setenv("EVOCOMPRESS_CACHE", str(tmp_path / "cache"))
    begin_sweep(folder, sweep)
    sign(folder.tune)
    for name, text in (("tuner.pkl", ""), ("workers", "auto"), ("experiment_state-1.json", "{}")):
        (folder.tune / name).write_text(text)
    name = trial_of(sweep, {"seed": 0}).name
    (folder.records.path / f"{name}.json").write_text('{"nothing": 1}')
    result = SimpleNamespace(config={"seed": 0}, error=None)
    restored = SimpleNamespace(fit=lambda: [result])
    monkeypatch.setattr(sweeps, "_trainable", lambda sweep, force: None)
    monkeypatch.setattr("ray.tune.Tuner.restore", lambda *_, **__: restored)
    with pytest.raises(RunError, match=rf"{name}\.json is damaged"):
        sweeps._run(sweep, folder, Silent(), force=False)
    assert (folder.tune / "tuner.pkl").exists()

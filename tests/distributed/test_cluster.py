"""What is asked of a cluster, without one."""

from evocompress.core.config import ModelConfig, RayConfig
from evocompress.distributed.cluster import _cores, anchored


def test_a_local_model_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    assert anchored(ModelConfig(source="model")).source == str(tmp_path / "model")
    for source in ("organisation/model", "demo:smollm2-135m"):
        assert anchored(ModelConfig(source=source)).source == source


def test_workers_that_are_asked_for_share_the_cores_there_are(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    assert _cores(RayConfig()) == 4
    assert _cores(RayConfig(workers=3)) == 4
    assert _cores(RayConfig(workers=3, cpus=2.5)) == 8

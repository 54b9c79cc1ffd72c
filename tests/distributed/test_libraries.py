"""Libraries built on Ray are those that are built in one process, to the byte."""

import os
import signal
import threading
import time
from dataclasses import replace

import psutil
import pytest
from run_files import tiny_run, written

from evocompress import api
from evocompress.compression.library.manifest import read_manifest
from evocompress.core.config_file import load_config
from evocompress.core.errors import LibraryError
from evocompress.core.progress import Silent
from evocompress.distributed.libraries import Site, _make_range, _shares
from evocompress.pipeline.context import RunContext
from evocompress.pipeline.run_folder import RunFolder
from evocompress.testing.tiny import tiny_checkpoint, tiny_model


@pytest.mark.parametrize("items, workers", [(1, 3), (7, 3), (8, 4), (9, 1)])
def test_shares_are_consecutive_and_even(items, workers):
    shares = _shares(list(range(items)), workers)
    assert [item for share in shares for item in share] == list(range(items))
    assert len(shares) == min(items, workers)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1 and all(shares)


ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster():
    """A cluster of one node, larger than this machine: its workers share the cores."""
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def run_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    tiny_checkpoint(folder / "model")
    tiny_model("llama", layers=5).save_pretrained(folder / "model")
    run = tiny_run(
        folder,
        {"library_sequences": 7, "search_sequences": 2, "heldout_sequences": 2},
        space={"sparsity": {"target": 0.5, "levels": 1}},
        library={"path": str(folder / "local")},
    )
    return written(folder / "run.yaml", run)


UNOBSERVED = {
    "magnitude": ["library.criterion=magnitude"],
    "taylor": ["space.sparsity=null", "space.width={}", "library.width_criterion=taylor"],
}
"""Libraries that are made without looking at what the matrices read."""


@pytest.fixture(scope="module")
def local(run_file):
    return contents(on_one(run_file, "local"))


def contents(path):
    return {file.name: file.read_bytes() for file in path.iterdir() if file.name != ".lock"}


def on_one(run_file, name, *changes):
    changes = (f"library.path={run_file.parent / name}", *changes)
    return api.build_library(load_config(run_file, list(changes)))


def on_ray(run_file, name, workers, *changes):
    path = run_file.parent / name
    changes = (f"library.path={path}", "executor=ray", f"ray.workers={workers}", *changes)
    return api.build_library(load_config(run_file, list(changes)))


pytestmark = pytest.mark.timeout(300)
clustered = pytest.mark.cluster


@clustered
def test_several_workers_make_the_same_files(cluster, run_file, local):
    assert contents(on_ray(run_file, "ray3", 3)) == local


@pytest.mark.parametrize("criterion", UNOBSERVED)
def test_a_task_makes_its_own_blocks_also_where_no_states_enter_them(run_file, criterion):
    path = on_one(run_file, f"{criterion}-own", *UNOBSERVED[criterion])
    whole, files = read_manifest(path), contents(path)
    for record in whole.blocks.values():
        (path / record.file).unlink()
    replace(whole, blocks={}).write(path)
    context = RunContext(load_config(run_file), RunFolder(run_file.parent / "none"), Silent())
    site = Site(context.config.model, context.loaded.fingerprint, threads=1, path=path, batch=2)
    own = [2, 3, 4]
    made = dict(_make_range(site, context.calibration.library, own))
    assert made == {index: whole.blocks[index] for index in own}
    found = {file.name: file.read_bytes() for file in path.glob("block-*")}
    assert found == {name: files[name] for name in (whole.blocks[index].file for index in own)}


@clustered
@pytest.mark.parametrize("criterion", UNOBSERVED)
def test_what_reads_no_inputs_is_the_same_on_several_workers(cluster, run_file, criterion):
    here = on_one(run_file, f"{criterion}-here", *UNOBSERVED[criterion])
    there = on_ray(run_file, f"{criterion}-there", 2, *UNOBSERVED[criterion])
    assert contents(there) == contents(here)


@clustered
def test_missing_blocks_alone_are_made(cluster, run_file, local):
    path = on_ray(run_file, "gaps", 2)
    kept = (path / "block-0002.safetensors").stat().st_mtime_ns
    for index in (1, 3, 4):
        (path / f"block-{index:04d}.safetensors").unlink()
    assert contents(on_ray(run_file, "gaps", 2)) == local
    assert (path / "block-0002.safetensors").stat().st_mtime_ns == kept


@clustered
def test_the_blocks_of_a_dead_worker_are_made_again(cluster, run_file, local):
    path, killed = run_file.parent / "killed", []

    def kill():
        """Once the first block is there, whoever is making others."""
        deadline = time.monotonic() + 120
        while not killed and time.monotonic() < deadline:
            time.sleep(0.002)
            if not (path / "manifest.json").exists() or not read_manifest(path).blocks:
                continue
            for process in psutil.process_iter(["name"]):
                if process.info["name"].startswith("ray::_make_range"):
                    os.kill(process.pid, signal.SIGKILL)
                    killed.append(process.pid)

    killer = threading.Thread(target=kill)
    killer.start()
    found = contents(on_ray(run_file, "killed", 2))
    killer.join()
    assert killed and found == local


@clustered
def test_propagated_hessians_stay_in_this_process(cluster, run_file):
    here = on_one(run_file, "propagated", "library.hessians=propagated")
    there = on_ray(run_file, "propagated-ray", 2, "library.hessians=propagated")
    assert contents(here) == contents(there)


@clustered
def test_what_a_worker_refuses_is_one_line(cluster, run_file, monkeypatch):
    from evocompress.distributed import libraries

    plain = libraries.Site
    monkeypatch.setattr(
        libraries, "Site", lambda **known: plain(**{**known, "fingerprint": "another"})
    )
    with pytest.raises(LibraryError, match="give all nodes the same model") as caught:
        on_ray(run_file, "refused", 2)
    assert "\n" not in str(caught.value)

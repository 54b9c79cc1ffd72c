"""On which machines the workers of a run may compute."""

import re
import shutil

import pytest
import torch
from run_files import write_run

from evocompress import api
from evocompress.core.circumstances import Facts, Machine, differences, read_environment
from evocompress.core.config_file import load_config
from evocompress.core.environment import machine
from evocompress.core.errors import RunError
from evocompress.core.files import read_json, write_json
from evocompress.distributed import RayBackend
from evocompress.pipeline.context import Local
from evocompress.pipeline.journal_memory import Memory
from evocompress.testing.tiny import tiny_checkpoint

HERE = machine(torch.device("cpu"))
OTHER = Machine(device="cpu: Another One", instructions=HERE.instructions)
OLDER = Machine(device=HERE.device, instructions="NONE")


class Workers:
    """Workers on these machines, which begin when there is something to answer."""

    def __init__(self, machines, admit, local):
        self.machines, self.admit, self.local = machines, admit, local

    def map(self, requests):
        for each in self.machines if requests else ():
            self.admit(each)
        return self.local.map(requests)

    def close(self):
        self.local.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished search of this process."""
    home = tmp_path_factory.mktemp("home")
    tiny_checkpoint(home / "model")
    api.search(load_config(write_run(home)))
    return home


@pytest.fixture
def search(made, tmp_path, monkeypatch):
    """Goes on with a copy of the search, of which the last values are lost, on such workers."""
    run = shutil.copytree(made / "runs" / "trial", tmp_path / "trial")
    changes = [f"runs={tmp_path}", f"library.path={made / 'runs' / 'trial' / 'library'}"]
    monkeypatch.setattr(
        "evocompress.pipeline.run_folder.MAY_DIFFER", ("executor", "ray.", "runs", "library.path")
    )
    whole = (run / "journal.jsonl").read_bytes().splitlines(keepends=True)

    def go_on(*machines, force=False):
        def workers(backend, context, live, admit):
            return Workers(machines, admit, Local().executor(context, live, admit))

        monkeypatch.setattr(RayBackend, "executor", workers)
        (run / "journal.jsonl").write_bytes(b"".join(kept(run, whole)))
        executor = [f"executor={'ray' if machines else 'local'}"]
        config = load_config(made / "trial.yaml", [*changes, *executor])
        return api.search(config, resume=True, force=force)

    return go_on


def kept(run, whole):
    """The first half of the values, and where the run was forced."""
    lines = (run / "journal.jsonl").read_bytes().splitlines(keepends=True)
    return [*whole[: len(whole) // 2], *(line for line in lines if b'"type":"forced"' in line)]


def refused(search, *machines, what):
    with pytest.raises(RunError, match=re.escape(what)) as caught:
        search(*machines)
    assert "--force" in str(caught.value) and "\n" not in str(caught.value)


def test_a_local_search_goes_on_on_workers_of_the_same_kind(search):
    run = search(HERE, HERE)
    assert Memory(run / "journal.jsonl").forced == []


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (OTHER, f"device was {HERE.device}, is cpu: Another One"),
        (OLDER, f"instructions was {HERE.instructions}, is NONE"),
    ],
)
def test_workers_on_another_machine_are_refused_by_name_unless_forced(search, other, what):
    refused(search, HERE, other, what=f"another machine than the run so far: {what}")
    run = search(other, force=True)
    [forced] = Memory(run / "journal.jsonl").forced
    assert forced["environment"]["workers"] == [other.model_dump()]
    api.report(run)
    assert f"other circumstances (--force): {what}." in (run / "summary.md").read_text()
    search(other)
    refused(search, what=f"is {getattr(HERE, what.split()[0])}")  # without workers, back here
    assert len(Memory(run / "journal.jsonl").forced) == 1


def test_a_cluster_of_several_kinds_is_marked_once_for_each(search):
    run = search(OTHER, HERE, OTHER, force=True)
    assert [f["environment"]["workers"] for f in Memory(run / "journal.jsonl").forced] == [
        [OTHER.model_dump()],
        [OTHER.model_dump(), HERE.model_dump()],
    ]
    for machines in ((HERE, OTHER), (OTHER,), ()):
        search(*machines)
    refused(search, OLDER, what="is NONE")


def begun_on_ray(run, **changes):
    known = read_json(run / "environment.json")
    write_json(run / "environment.json", known | {"executor": "ray"} | changes)


def test_the_first_worker_of_a_run_on_ray_tells_what_the_others_are(search, tmp_path):
    run = tmp_path / "trial"
    begun_on_ray(run, device="cpu: The Driver's")
    refused(search, OTHER, HERE, what=f"device was cpu: Another One, is {HERE.device}")
    assert read_environment(run / "environment.json").workers == (OTHER,)
    search(OTHER)
    refused(search, HERE, what=f"device was cpu: Another One, is {HERE.device}")
    refused(search, what=f"device was cpu: Another One, is {HERE.device}")


def test_a_run_of_an_earlier_version_on_ray_goes_on(search, tmp_path):
    run = tmp_path / "trial"
    for machines in ((), (OTHER,)):
        begun_on_ray(run)
        search(*machines)


def test_other_threads_that_are_forced_leave_the_machines_compared(search, tmp_path):
    run = tmp_path / "trial"
    begun_on_ray(run, workers=[OTHER.model_dump()], threads=2)
    with pytest.raises(RunError, match="threads was 2, is 1"):
        search(OTHER)
    search(OTHER, force=True)
    assert read_environment(run / "environment.json").last.workers == (OTHER,)
    refused(search, HERE, what="device was cpu: Another One")


def test_instructions_are_a_processors():
    gpu = Facts(device="cuda: A", instructions="AVX512")
    workers = Facts(executor="ray", workers=(Machine(device="cuda: A"),))
    assert differences(gpu, workers) == differences(workers, gpu) == []
    assert differences(gpu, Facts(executor="ray")) == []

"""A cluster of two nodes on this machine, of which one goes and another one comes."""

import threading
from contextlib import closing
from itertools import count

import pytest
import ray_fakes
from ray_fakes import ask, executor, expected

from evocompress.core.config import RayConfig
from evocompress.distributed.cluster import places

ray = pytest.importorskip("ray")

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


@pytest.fixture
def cluster(monkeypatch):
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray.cloudpickle.register_pickle_by_value(ray_fakes)
    nodes = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    ray.init(address=nodes.address, log_to_driver=False)
    yield nodes
    ray.shutdown()
    nodes.shutdown()
    ray.cloudpickle.unregister_pickle_by_value(ray_fakes)


def test_a_run_goes_on_while_nodes_go_and_come(cluster, tmp_path):
    second = cluster.add_node(num_cpus=1)
    seen, numbers = [], count()

    def wanted():
        seen.append(places(RayConfig()))
        return seen[-1]

    def step(many):
        requests = [ask(f"u{next(numbers)}") for _ in range(30)]
        answers = list(many.map(requests))
        assert {answer.request for answer in answers} == set(requests)
        assert all(answer == expected(answer.request) for answer in answers)

    with closing(executor(tmp_path, wanted, cpus=1, seconds=0.2)) as many:
        step(many)
        assert seen[-1] == 2
        remover = threading.Timer(1.0, cluster.remove_node, (second, False))
        remover.start()
        step(many)
        remover.join()
        while seen[-1] == 2:  # Ray takes half a minute to notice
            step(many)
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        while sum(worker.starting is None for worker in many._workers) < 2:
            step(many)
        assert seen[-1] == 2

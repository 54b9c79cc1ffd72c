"""The cluster of a sweep: what its trials' processes have, and whether there is room for one."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

from evocompress.config import RayConfig
from evocompress.distributed.cluster import gpus_each, start
from evocompress.errors import ConfigError, one_line
from evocompress.progress import Reporter

JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Environment variable in which Ray hands a job's runtime environment to its driver."""


def start_for_trials(config: RayConfig) -> Callable[[], None]:
    """Joins a cluster, or starts one, whose processes have `config.runtime_env`.

    Tune gives its actors an environment of its own, into which Ray puts that of the job.

    Returns:
        What leaves or ends it.

    Raises:
        ConfigError: Ray is not installed, there is no such cluster, or it cannot have this
            environment.
    """
    if not config.runtime_env:
        return start(config)
    _check_takes_environment(config)
    before = os.environ.get(JOB)
    job = json.loads(before) if before else {}
    job["runtime_env"] = _merged(job.get("runtime_env") or {}, config.runtime_env)
    os.environ[JOB] = json.dumps(job)
    try:
        return start(config)
    except TypeError as error:
        raise ConfigError(f"ray.runtime_env is not one that Ray knows: {one_line(error)}") from None
    finally:
        os.environ.pop(JOB)
        if before is not None:
            os.environ[JOB] = before


def _check_takes_environment(config: RayConfig) -> None:
    """Refuses connections whose environment cannot be chosen.

    Raises:
        ConfigError: It is such a one.
    """
    # `start` has to set something before Ray is imported.
    ray = sys.modules.get("ray")
    if ray and ray.is_initialized():
        raise ConfigError(
            "ray.runtime_env: this process has joined a cluster already; give it to ray.init"
        )
    if (config.address or "").startswith("ray://"):
        raise ConfigError(
            f"ray.runtime_env cannot be had through {config.address}: start the sweep on a node of "
            "the cluster, with ray.address=auto"
        )


def _merged(job: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Two runtime environments, the sweep's own having the last word."""
    merged = job | own
    if variables := job.get("env_vars", {}) | own.get("env_vars", {}):
        merged["env_vars"] = variables
    return merged


def check_room(config: RayConfig, reporter: Reporter) -> None:
    """Refuses what no node of this machine's cluster could ever run; others may yet grow.

    Raises:
        ConfigError: That many CPUs or GPUs are not there.
    """
    import ray

    wanted = {"CPU": config.cpus, "GPU": gpus_each(config)}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(all(node.get(k, 0) >= amount for k, amount in wanted.items()) for node in nodes):
        return
    most = {k: max((node.get(k, 0) for node in nodes), default=0) for k in wanted}
    lack = (
        f"ray.cpus={wanted['CPU']:g}, ray.gpus={wanted['GPU']:g}: no node has so many (at most "
        f"{most['CPU']:g} CPUs, {most['GPU']:g} GPUs)"
    )
    if config.address is None:
        raise ConfigError(f"{lack}: give a trial less")
    reporter.say(f"{lack}: trials wait until the cluster has such a node")

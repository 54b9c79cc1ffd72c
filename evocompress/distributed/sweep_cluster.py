"""The cluster of a sweep: what its trials' processes have, and whether there is room for one."""

from __future__ import annotations

import sys
from collections.abc import Callable

from evocompress.core.config import RayConfig
from evocompress.core.env_vars import told_to_ray
from evocompress.core.errors import ConfigError, one_line
from evocompress.core.progress import Reporter
from evocompress.distributed.cluster import gpus_each, nodes_with, start, too_much


def start_for_trials(config: RayConfig) -> Callable[[], None]:
    """Joins a cluster, or starts one, whose processes have `config.runtime_env` but its variables.

    Tune gives its actors an environment of its own, into which Ray puts that of the job. Returns
    what leaves or ends the cluster.

    Raises:
        ConfigError: Ray is not installed, there is no such cluster, or it cannot have this
            environment.
    """
    # `start` has to set something before Ray is imported.
    ray = sys.modules.get("ray")
    environment = told_to_ray(config)
    if environment and ray and ray.is_initialized():
        raise ConfigError(
            "ray.runtime_env: this process has joined a cluster already; give it to ray.init"
        )
    try:
        return start(config, runtime_env=environment)
    except TypeError as error:
        raise ConfigError(f"ray.runtime_env is not one that Ray knows: {one_line(error)}") from None


def check_trials_fit(config: RayConfig, reporter: Reporter) -> None:
    """Refuses what no node of this machine's cluster could ever run; others may yet grow."""
    wanted = {"CPU": config.cpus, "GPU": gpus_each(config)}
    if nodes_with(wanted):
        return
    lack = too_much(wanted)
    if config.address is None:
        raise ConfigError(f"{lack}: give a trial less")
    reporter.say(f"{lack}: trials wait until the cluster has such a node")

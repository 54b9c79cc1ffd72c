"""Joining a Ray cluster, or starting one, and how many workers it has room for."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from math import ceil
from pathlib import Path
from typing import Any

from evocompress.core.config import ModelConfig, RayConfig, RunConfig
from evocompress.core.errors import ConfigError, RunError, one_line
from evocompress.core.stopping import signals_kept

NOT_INSTALLED = (
    "executor=ray needs a package that is not installed: pip install 'evocompress[ray]', or give "
    "executor=local"
)

LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Environment variable with which Ray keeps to one machine, as it does elsewhere by itself."""

CONNECT_SECONDS = 10.0
"""In which a cluster must answer."""


def start(config: RayConfig, *, runtime_env: Mapping[str, Any] | None = None) -> Callable[[], None]:
    """Joins a cluster, or starts one on this machine that only this machine can reach.

    All processes that this one starts there have `runtime_env`. Returns what leaves or ends it.

    Raises:
        ConfigError: Ray is not installed, or there is no such cluster.
    """
    if config.address is None:
        # Read when Ray is imported: a node's address is then the loopback one, on Linux, too.
        os.environ.setdefault(LOOPBACK, "0")
    try:
        import ray
    except ImportError:
        raise ConfigError(NOT_INSTALLED) from None
    if ray.is_initialized():
        return lambda: None
    _check_address(config.address)
    options: dict[str, Any] = {
        "namespace": "evocompress",
        "log_to_driver": False,
        "logging_level": "error",
    }
    if runtime_env:
        options["runtime_env"] = dict(runtime_env)
    if config.address is None:
        options |= {"include_dashboard": False, "num_cpus": _cores(config)}
    try:
        with signals_kept():
            ray.init(address=config.address or "local", **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"ray.address={config.address}: no cluster can be joined there ({one_line(error)}); "
            "give another address, or executor=local"
        ) from None
    return lambda: ray.shutdown()


def _cores(config: RayConfig) -> int:
    """CPUs of a cluster of its own: all, or as many as the workers that are asked for take."""
    wanted = 0 if config.workers == "auto" else ceil(config.workers * config.cpus)
    return max(os.cpu_count() or 1, wanted)


def anchored(config: ModelConfig) -> ModelConfig:
    """The model with a local path that does not depend on the folder that a process is in."""
    path = Path(config.source).expanduser()
    if not path.exists():
        return config
    return config.model_copy(update={"source": str(path.absolute())})


def check_workers_fit(config: RayConfig) -> None:
    """Refuses workers that a cluster of its own, which does not grow, could never run."""
    import ray

    if config.address is not None:
        return
    there = ray.cluster_resources()
    for name, key, each in (("CPU", "cpus", config.cpus), ("GPU", "gpus", gpus_each(config))):
        if each > there.get(name, 0):
            raise ConfigError(
                f"ray.{key}={each:g}: this machine has only {there.get(name, 0):g} {name}s: give a "
                "worker fewer, or name a cluster with ray.address"
            )


def _check_address(address: str | None) -> None:
    """Refuses an address at which nobody listens: Ray itself tries for minutes."""
    if address in (None, "auto", "local"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"ray.address={address}: no cluster answers there ({one_line(error)}); give auto, or "
            "HOST:PORT as 'ray start --head' prints it, or executor=local"
        ) from None


def places(config: RayConfig) -> int:
    """How many workers there should be now."""
    import ray

    if config.workers != "auto":
        return config.workers
    there = ray.cluster_resources()
    by_cpu = int(there.get("CPU", 0) / config.cpus)
    gpus = gpus_each(config)
    return max(1, min(by_cpu, int(there.get("GPU", 0) / gpus)) if gpus else by_cpu)


def gpus_each(config: RayConfig) -> float:
    """GPUs of each worker: one, where there are any, unless the configuration says otherwise."""
    import ray

    if config.gpus is not None:
        return config.gpus
    return 1.0 if ray.cluster_resources().get("GPU", 0) else 0.0


def whole_gpus(config: RunConfig) -> int:
    """GPUs of a task that computes alone on its device: one, where the run is on a GPU.

    A worker without a share of one, by ``ray.gpus: 0``, would still find it and compute on it.
    """
    import ray

    if config.model.device == "auto":
        return int(ray.cluster_resources().get("GPU", 0) > 0)
    return int(config.model.device.startswith("cuda"))


def nodes_with(wanted: Mapping[str, float]) -> list[dict[str, Any]]:
    """The nodes that have at least these resources, free or not."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    return [n for n in nodes if all(n["Resources"].get(k, 0) >= v for k, v in wanted.items())]


def too_much(wanted: Mapping[str, float]) -> str:
    """That every node has too few CPUs and GPUs, in words."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    most = {k: max((node.get(k, 0) for node in nodes), default=0) for k in wanted}
    return (
        f"ray.cpus={wanted['CPU']:g}, ray.gpus={wanted['GPU']:g}: no node has so many (at most "
        f"{most['CPU']:g} CPUs, {most['GPU']:g} GPUs)"
    )


def enter(home: str) -> None:
    """Has relative paths mean in this process what they mean to the driver.

    Raises:
        RunError: This node does not see the driver's folder.
    """
    try:
        os.chdir(home)
    except OSError as error:
        raise RunError(
            f"a node cannot enter {home} ({one_line(error)}): all nodes must see it"
        ) from None

"""Planning for a device by its name: this machine is measured first."""

from __future__ import annotations

from pathlib import Path

import torch

from evocompress.core.config import RunConfig
from evocompress.core.config_file import nearest
from evocompress.core.errors import ConfigError
from evocompress.models.loading import LoadedModel, device_named
from evocompress.pipeline.planning.device import DEVICES
from evocompress.pipeline.planning.measure import measured
from evocompress.pipeline.planning.outline import outline
from evocompress.pipeline.planning.plan import Plan, context_of, make_plan

HERE = "here"


def plan_on(config: RunConfig, device: str, processes: int = 1) -> Plan:
    """The plan of a run on this machine, `HERE`, or on one of `DEVICES`.

    Several processes, with a device each, share out the healing.

    Raises:
        EvoCompressError: There is no such device, or the run's settings do not fit.
    """
    if device == HERE:
        return _plan_here(config, processes)
    if device not in DEVICES:
        known = nearest(device, (HERE, *DEVICES))
        raise ConfigError(f"--device: unknown device '{device}': {known}")
    return make_plan(config, _outline(config), DEVICES[device], processes)


def _plan_here(config: RunConfig, processes: int) -> Plan:
    """The plan of a run on the device of this machine that it names."""
    if config.threads:
        torch.set_num_threads(config.threads)
    target = device_named(config.model.device)
    loaded = _outline(config, on_cpu=target.type == "cpu")
    context = context_of(config, loaded)
    deepest = max((len(levels) for levels in context.wanted_levels.values()), default=1)
    calibration = config.calibration
    architecture = loaded.family.architecture(loaded.model)
    device = measured(
        architecture,
        loaded.model.dtype,
        target,
        rows=calibration.micro_batch * (architecture.tokens or calibration.length),
        levels=deepest,
        top_k=config.proxy.top_k,
        folder=_existing(config.library.path or config.folder),
    )
    return make_plan(config, loaded, device, processes)


def _outline(config: RunConfig, *, on_cpu: bool = False) -> LoadedModel:
    """The outline of the model that a run names."""
    model = config.model
    return outline(
        model.source, model.dtype, on_cpu=on_cpu, trust_remote_code=model.trust_remote_code
    )


def _existing(path: Path) -> Path:
    """The nearest folder above a path that exists."""
    return next(parent for parent in (path, *path.absolute().parents) if parent.is_dir())

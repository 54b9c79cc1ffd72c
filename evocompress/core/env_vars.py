"""Environment variables of the processes that Ray starts, whose values Ray is not told.

Ray writes the environment of its processes into its logs, and a run its settings into its folder.
The values may be secrets, such as tokens of a model hub: they go to a process with its work, as its
arguments do, and are set there before anything is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from evocompress.core.config import RayConfig
from evocompress.core.errors import ConfigError
from evocompress.core.fields import ENV_VARS


@dataclass(frozen=True)
class EnvVars:
    """Environment variables of other processes.

    Attributes:
        values: {name: value}; shown nowhere.
    """

    values: Mapping[str, str] = field(default_factory=dict, repr=False)

    def enter(self) -> None:
        """Sets them in this process."""
        os.environ.update(self.values)


def env_vars_of(config: RayConfig) -> EnvVars:
    """Those of a run; what has no value there has that of this process.

    Raises:
        ConfigError: It has none here either.
    """
    given: Mapping[str, str | None] = config.runtime_env.get(ENV_VARS, {})
    found = {name: os.environ.get(name) if v is None else v for name, v in given.items()}
    if missing := [name for name, value in found.items() if value is None]:
        raise ConfigError(
            f"ray.runtime_env.{ENV_VARS}.{missing[0]} has no value, and values are not kept in a "
            "run's folder: set the variable in the environment of this command"
        )
    return EnvVars({name: value for name, value in found.items() if value is not None})


def told_to_ray(config: RayConfig) -> dict[str, Any] | None:
    """The rest of the environment, which Ray makes."""
    return {key: value for key, value in config.runtime_env.items() if key != ENV_VARS} or None

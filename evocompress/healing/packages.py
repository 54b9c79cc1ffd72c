"""Which packages a way of healing needs."""

from __future__ import annotations

from importlib.util import find_spec

from evocompress.core.config import HealConfig
from evocompress.core.errors import ConfigError


def check_packages(config: HealConfig) -> None:
    """Refuses a healing whose package is not installed.

    Raises:
        ConfigError: One is missing.

    Examples:
        >>> check_packages(HealConfig())
    """
    needed = {
        "lora": ("lora" in config.train, "peft", "heal.train=lora"),
        "adamw8bit": (config.optimizer == "adamw8bit", "torchao", "heal.optimizer=adamw8bit"),
    }
    for extra, (used, package, setting) in needed.items():
        if used and find_spec(package) is None:
            raise ConfigError(f"{setting} needs a package: pip install 'evocompress[{extra}]'")

"""What a config says of the model, apart from what it says of files and of running it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

VOLATILE_KEYS = {
    "_name_or_path",
    "_model_name_or_path",
    "transformers_version",
    "architectures",
    "dtype",
    "use_cache",
}
"""What a config says about where it was written or how it is run, not about the model."""


def lasting(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a config without its volatile keys."""
    return {key: value for key, value in settings.items() if key not in VOLATILE_KEYS}


def name_stages(config: Any, layers: int) -> None:
    """Tell a config that names its layers, as those of backbones do, how few there are."""
    names = getattr(config, "stage_names", None)
    if names and len(names) > layers + 1:
        config.stage_names = names[: layers + 1]
        config.set_output_features_output_indices(None, None)


def class_key(cls: type[PreTrainedModel], config: PreTrainedConfig) -> str:
    """A class of models with a config as text."""
    settings = lasting(json.loads(config.to_json_string(use_diff=False)))
    return f"{cls.__module__}.{cls.__qualname__} {json.dumps(settings)}"

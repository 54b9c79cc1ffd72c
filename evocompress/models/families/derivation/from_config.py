"""The family of a language model told by its config alone, before any weights are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    PreTrainedConfig,
    PreTrainedModel,
)

from evocompress.core.errors import ModelError, one_line
from evocompress.models.families.derivation.derived import Derived, derived


def derived_from(source: object, settings: Mapping[str, Any]) -> Derived:
    """The family of a causal language model without one of its own.

    Code that comes with the model is not run.

    Args:
        source: What the config is called in messages.
        settings: Those of its ``config.json``, with a type of transformers.

    Raises:
        ModelError: They are no config of that type, or no family can be derived.
    """
    try:
        plain = PreTrainedConfig._decode_special_floats(dict(settings))
        config: PreTrainedConfig = CONFIG_MAPPING[settings["model_type"]].from_dict(plain)
    except Exception as error:  # classes of configs fail with any type of error
        raise ModelError(f"{source} is no config of its type: {one_line(error)}") from None
    return derived(causal_class(config), config)


def causal_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class of causal language models of a config.

    Raises:
        ModelError: transformers has none.
    """
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(
            f"transformers has no class of causal language models of type {config.model_type!r}, "
            "only of a whole with other parts"
        )
    found: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    cls: type[PreTrainedModel] = found[0] if isinstance(found, tuple) else found
    return cls

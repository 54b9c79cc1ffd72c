"""Settings of a config in the form of transformers 4, for programs that read checkpoints with it.

Version 5 writes what concerns rotary embeddings as ``rope_parameters`` and reads the old form too;
version 4 knows only the old form, and without it computes with a base of 10,000.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

from evocompress.models.families.uneven import text_config

CONFIG = "config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
PHI3_SCALING = {"rope_type", "type", "short_factor", "long_factor"}


def add_old_settings(folder: Path, config: PreTrainedConfig) -> None:
    """Adds the old form to the config that transformers has written into a folder."""
    text = text_config(config)
    old = rotary_settings(text) | renamed_settings(text)
    if old and _is_understood(text, old):
        path = folder / CONFIG
        settings = json.loads(path.read_text(encoding="utf-8"))
        own = [name for name in config.sub_configs if getattr(config, name, None) is text]
        (settings[own[0]] if own else settings).update(old)
        path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _is_understood(config: PreTrainedConfig, old: Mapping[str, Any]) -> bool:
    """Whether version 5 still reads a config that has the old form beside its own.

    Classes that version 4 did not have, such as Gemma 4's, may take the old form for a new one.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            read = type(config).from_dict(copy.deepcopy({**config.to_dict(), **old}))
    except (KeyError, ValueError, StrictDataclassError):
        return False
    kept: Mapping[str, Any] = getattr(config, "rope_parameters", None) or {}
    found: Mapping[str, Any] = getattr(read, "rope_parameters", None) or {}
    return kept.items() <= found.items()


def renamed_settings(config: PreTrainedConfig) -> dict[str, Any]:
    """What a class declares by one name and version 5 stores by another: experts of Qwen3-MoE."""
    declared = {field.name for field in fields(config)}
    return {
        old: getattr(config, new)
        for old, new in config.attribute_map.items()
        if old in declared and new not in declared
    }


def make_tokenizer_readable(folder: Path) -> None:
    """Has a tokenizer that version 5 wrote name a class that version 4 knows as well."""
    path = folder / TOKENIZER_CONFIG
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    known = dict(settings)
    if known.get("tokenizer_class") == "TokenizersBackend":
        known["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(known.get("extra_special_tokens"), list):
        known["additional_special_tokens"] = known.pop("extra_special_tokens")
    if known != settings:
        path.write_text(json.dumps(known, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def rotary_settings(config: PreTrainedConfig) -> dict[str, Any]:
    """What transformers 4 reads of rotary embeddings; nothing where a model has none.

    Models with several kinds of layers have a base of their own for those with a window, and any
    scaling belongs to the others.
    """
    parameters = getattr(config, "rope_parameters", None) or {}
    windowed, full = parameters.get("sliding_attention"), parameters.get("full_attention")
    whole = full or (None if windowed else parameters)
    old: dict[str, Any] = {}
    if whole:
        old = {"rope_theta": whole["rope_theta"], "rope_scaling": _scaling(whole, config)}
        old |= {key: whole[key] for key in ("partial_rotary_factor",) if key in whole}
        if whole.get("rope_type") == "longrope":
            key = "original_max_position_embeddings"
            old |= {key: whole[key]} if key in whole else {}
    if windowed:
        old["rope_local_base_freq"] = windowed["rope_theta"]
    return old


def _scaling(parameters: Mapping[str, Any], config: PreTrainedConfig) -> dict[str, Any] | None:
    """How frequencies are scaled; ``None`` where they are not."""
    if parameters.get("rope_type", "default") == "default":
        return None
    elsewhere = {"rope_theta", "partial_rotary_factor"}
    scaling = {key: value for key, value in parameters.items() if key not in elsewhere}
    if not config.model_type.endswith("phi3"):
        return scaling
    # Phi-3 takes three settings and no other; its original length is one of the whole config.
    rest = scaling.keys() - PHI3_SCALING - {"original_max_position_embeddings"}
    short, long = scaling["short_factor"], scaling["long_factor"]
    known = {"type": scaling["rope_type"], "short_factor": short, "long_factor": long}
    return scaling if rest else known

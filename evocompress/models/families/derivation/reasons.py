"""Why a model of a type cannot be made or run, in words: which class is the reason."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedConfig

from evocompress.core.errors import one_line
from evocompress.models.families.uneven import text_config

OF_TYPES = re.compile(r"same dtype|float != double")
"""What torch says where factors of a product are of two types."""

PACKAGE = re.compile(r"(\w+) requires the (\S+) library but it was not found")
"""What transformers says where a package is not installed."""


class Float64(TorchFunctionMode):
    """What would be turned into float32 becomes float64, for a while.

    Some classes compute in float32 whatever the type of the model is.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """See `torch.overrides.TorchFunctionMode`."""
        wide = {torch.float32: torch.float64}
        given = [wide.get(one, one) if isinstance(one, torch.dtype) else one for one in args]
        named = {
            name: wide.get(one, one) if isinstance(one, torch.dtype) else one
            for name, one in (kwargs or {}).items()
        }
        own: Any = torch.Tensor.double if func is torch.Tensor.float else func
        return own(*given, **named)


def of_types(error: BaseException) -> bool:
    """Whether a model did not run as numbers of two types met."""
    return OF_TYPES.search(str(error)) is not None


def in_float32(error: BaseException) -> str:
    """What to say of a class that computes in float32 whatever the type of the model is."""
    return (
        "a part of it computes in float32 whatever the type of the model is, which meets matrices "
        f"of that type in {raising_class(error)}: it runs in float32 alone, and tiny models are "
        "tried in float64"
    )


def why_not_made(error: BaseException) -> str:
    """Why a model of a type cannot be made, as an error says."""
    if lacking := PACKAGE.search(str(error)):
        return (
            f"{lacking[1]} of transformers needs the package {lacking[2]}, which is not installed"
        )
    return f"a model of it cannot be made ({_raised(error)})"


def why_not_run(error: BaseException, config: PreTrainedConfig) -> str:
    """Why a tiny model of a type does not run, as an error and its config say."""
    text: Any = text_config(config)
    codes, sharing = (getattr(text, key, 0) for key in ("num_codebooks", "num_kv_shared_layers"))
    if codes and codes > 1:
        return (
            f"it reads a token of text and {codes} of sound together at each position "
            "(num_codebooks), and only tokens of text are given"
        )
    if sharing and sharing == text.num_hidden_layers:
        return (
            "it drafts for another model: all of its layers read keys and values of that one "
            "(num_kv_shared_layers is num_hidden_layers), so it does not run alone"
        )
    if of_types(error):
        return in_float32(error)
    return f"a tiny model of it does not run ({_raised(error)})"


def _raised(error: BaseException) -> str:
    place = raising_class(error)
    return f"{place} raises {one_line(error)}" if place else one_line(error)


def raising_class(error: BaseException) -> str:
    """The class of transformers in which an error was raised; empty where it was in none."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    own = (
        frame.f_locals.get("self")
        for frame in frames
        if frame.f_globals.get("__name__", "").startswith("transformers.models.")
    )
    kinds = [type(one) for one in own if isinstance(one, nn.Module | PreTrainedConfig)]
    return kinds[-1].__name__ if kinds else ""


def why_no_layers(config: PreTrainedConfig) -> str:
    """Why a config without one number of layers is that of a model without one list of blocks."""
    parts: Mapping[str, Any] = {name: getattr(config, name, None) for name in config.sub_configs}
    counted = [name for name, part in parts.items() if hasattr(part, "num_hidden_layers")]
    if len(counted) > 1:
        return (
            f"its config tells no number of layers, only its parts do ({', '.join(counted)}): it "
            "has several lists of blocks, each with a hidden state of its own"
        )
    return stages(config) or "its config tells no number of layers: it has several parts or stages"


def stages(config: PreTrainedConfig) -> str:
    """What to say of a model whose config counts the blocks of several stages; empty for others."""
    for name in ("depths", "depth", "num_block_repeats"):
        counts = getattr(config, name, None)
        if isinstance(counts, list | tuple) and len(counts) > 1:
            each = ", ".join(map(str, counts))
            return f"it has {len(counts)} stages ({name}: {each}), and not one list of like blocks"
    return ""

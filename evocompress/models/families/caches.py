"""What attentions cache: keys and values, as units that can be rounded."""

from __future__ import annotations

import inspect
from collections.abc import Iterable

from torch import nn
from transformers import PreTrainedModel

from evocompress.core.errors import ModelError
from evocompress.core.types import Unit
from evocompress.models.families.base import Family, block_matrices

CACHE = "cache"
"""The role of these units, and the end of their names."""

ARGUMENTS = ("past_key_values", "layer_past")
"""By which attentions of transformers are given the cache that they hand keys and values to; the
latter that of GPT-NeoX, GPT-J, Falcon, BLOOM and their like."""


def cache_argument(module: nn.Module) -> str | None:
    """The name of the argument by which a module is given a cache, if it is given one."""
    parameters = inspect.signature(module.forward).parameters
    return next((name for name in ARGUMENTS if name in parameters), None)


def caching_modules(family: Family, model: PreTrainedModel) -> dict[str, str]:
    """{unit of an attention: path of the module that hands its keys and values to a cache}.

    Examples:
        >>> from evocompress.testing.tiny import tiny_loaded
        >>> loaded = tiny_loaded("llama")
        >>> caching_modules(loaded.family, loaded.model)["model.layers.0.attention"]
        'model.layers.0.self_attn'
    """
    found = {}
    for index, matrices in enumerate(block_matrices(family, model)):
        block = family.block_names[index]
        paths = [m.path for m in matrices if {"key", "value", "grouped"} & {*m.rows}]
        within = next(filter(None, (_caching(model, block, path) for path in paths)), None)
        if within is not None and family.at(index).attends:
            found[f"{block}.attention"] = within
    return found


def _caching(model: nn.Module, block: str, path: str) -> str | None:
    """The innermost module around one of a block, within it, that takes a cache."""
    parts = path.split(".")[:-1]
    for count in range(len(parts), 0, -1):
        name = ".".join([block, *parts[:count]])
        if cache_argument(model.get_submodule(name)):
            return name
    return None


def cache_units(family: Family, model: PreTrainedModel, units: Iterable[Unit]) -> list[Unit]:
    """The caches of those attentions whose keys and values can be rounded, of a causal model."""
    caching = caching_modules(family, model)
    return [
        Unit(
            *(f"{unit.name}.{CACHE}", "cache", unit.name, unit.block, CACHE),
            droppable=False,
            narrowable=False,
        )
        for unit in units
        if unit.name in caching
    ]


def check_key_value_caches(family: Family, model: PreTrainedModel) -> None:
    """Refuse to round the caches of a model that does not keep keys and values as such.

    Raises:
        ModelError: With the reason.
    """
    architecture = family.architecture(model)
    if family.alone:
        why = "its blocks are not known"
    elif not architecture.causal:
        why = "it does not tell the next token, so nothing is cached"
    elif any(architecture.latents):
        why = "it caches latents in place of keys and values"
    elif architecture.handed or architecture.shared or architecture.calls:
        why = "several of its blocks share keys and values, or matrices"
    elif not caching_modules(family, model):
        why = "no attention of it is known to hand keys and values to a cache of transformers"
    else:
        return
    raise ModelError(f"space.cache: the cache of this model cannot be rounded: {why}; leave it out")

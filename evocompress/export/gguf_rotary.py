"""Rotary embeddings as a GGUF file tells of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evocompress.export.gguf_latent import is_latent

FREQUENCIES = "inv_freq"

NEVER = 1e30
"""What llama.cpp divides the frequency of an element by that is not to be rotated."""

MSCALE = "mscale", "mscale_all_dim"
"""Settings of YaRN that cancel each other in queries and keys where they are the same."""

OWN_FACTORS = ("attention_factor", *MSCALE)
"""Settings of YaRN with which queries and keys are scaled otherwise than it says."""


def rotary_kinds(config: Any) -> dict[str, Mapping[str, Any]]:
    """{kind of layer: its ``rope_parameters``}; the kind is empty where all layers share them."""
    settings = getattr(config, "rope_parameters", None) or {}
    kinds = {kind: one for kind, one in settings.items() if isinstance(one, Mapping)}
    return kinds or {"": settings}


def frequencies(model: PreTrainedModel) -> dict[str, Tensor]:
    """{kind of layer: the frequencies (rotated elements / 2,) of a head}; empty without any."""
    found = {}
    for name, buffer in model.named_buffers():
        word = name.rpartition(".")[2]
        if word.endswith(FREQUENCIES) and "original" not in word:
            found[word.removesuffix(FREQUENCIES).rstrip("_")] = buffer.double()
    return found


def factors(model: PreTrainedModel) -> Tensor | None:
    """By what the frequencies of all layers are divided (R / 2,); ``None`` where by nothing.

    An outline of a model, which has no numbers, tells of none either. Of Gemma 4 they are those of
    layers without a window, which turn a part of a head and divide the other frequencies by a large
    number. llama.cpp computes those of YaRN itself.
    """
    own, settings = frequencies(model), rotary_kinds(model.config)
    kind = "" if "" in own else "full_attention"
    if kind not in own or own[kind].is_meta or scaling_of(settings[kind]) == "yarn":
        return None
    found = (plain(len(own[kind]), settings[kind]) / own[kind].cpu()).clamp(max=NEVER)
    usual = torch.allclose(found, torch.ones_like(found))
    return None if usual and not kind else found.float()


def scaling_of(settings: Mapping[str, Any]) -> str:
    """How embeddings are scaled."""
    kind: str = settings.get("rope_type", "default")
    return kind


def plain(count: int, settings: Mapping[str, Any]) -> Tensor:
    """The frequencies of embeddings that are not scaled."""
    steps = torch.arange(count, dtype=torch.float64) / count
    return float(settings["rope_theta"]) ** -steps


def rotary_obstacle(model: PreTrainedModel, *, factors: bool, mscale: bool) -> str | None:
    """The obstacle of embeddings that are neither plain nor scaled as llama.cpp does it.

    With `factors` it is told how each frequency is scaled, and with `mscale` how much YaRN scales
    scores.
    """
    settings = rotary_kinds(model.config)
    for kind, own in frequencies(model).items():
        name, usual = scaling_of(settings[kind]), plain(len(own), settings[kind])
        known = {
            "default": own.is_meta or torch.allclose(own.cpu(), usual),
            "linear": True,
            **dict.fromkeys(("llama3", "proportional"), factors),
            "yarn": _yarn_is_known(settings[kind], model.config, mscale=mscale),
        }
        if not known.get(name, False):
            return (
                f"cannot hold this {model.config.model_type} model, whose rotary embeddings are "
                f"{name}"
            )
    return None


def _yarn_is_known(settings: Mapping[str, Any], config: Any, *, mscale: bool) -> bool:
    """Whether YaRN scales queries, keys and scores as llama.cpp does it."""
    if not mscale:
        return not any(settings.get(key) for key in OWN_FACTORS)
    own, every = (settings.get(key) for key in MSCALE)
    alike = bool(own) and own == every and (own == 1 or is_latent(config))
    return alike and not settings.get("attention_factor")

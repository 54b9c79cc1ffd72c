"""Which weights of a model a healing trains.

Norms, biases and the head alone come near to training everything (PERP, 2312.15230); the last
blocks and the head do after blocks were dropped (Reassessing Layer Pruning, 2411.15558).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from evocompress.core.config import HealConfig
from evocompress.core.errors import ConfigError
from evocompress.core.storage import storage_type
from evocompress.core.types import Level
from evocompress.healing.adapters import adapter_weights, add_adapters
from evocompress.healing.packages import check_packages
from evocompress.healing.student import zero_masks
from evocompress.models.families import Family

LOG = logging.getLogger("evocompress")

ALL = "all"
NORMS = "norms"
BIASES = "biases"
HEAD = "head"
LORA = "lora"
SCALES = "scales"
LAST = "last:"

OTHERS = frozenset((LORA, SCALES))
"""Words for what is no parameter of the model."""


def prepare_training(
    model: PreTrainedModel,
    family: Family,
    config: HealConfig,
    typed: Mapping[str, Level] | None = None,
    learnt: Collection[str] = (),
) -> dict[str, Tensor]:
    """Lets what the configuration says have gradients, with adapters and recomputing if it says so.

    Args:
        model: The student.
        family: Its family.
        config: The recipe.
        typed: The levels of parameters that have a coarser type, by name. They are not trained.
        learnt: Which of them are all the same, through their rounding (`through_rounding`).

    Returns:
        Where parameters stay zero, by their present names.

    Raises:
        ConfigError: The model has nothing of what is to be trained, or a package is missing.
    """
    check_packages(config)
    typed = typed or {}
    if _asks_for_rounding(config) and not learnt:
        LOG.warning(
            "heal: nothing has a type with equal steps here, to be trained through rounding"
        )
    zeros = {
        name: mask
        for name, mask in zero_masks(model, family).items()
        if name not in learnt or typed[name].zeros  # others were rounded to zero
    }
    named = dict(model.named_parameters())
    by_parameter = {id(named[name]): mask for name, mask in zeros.items()}
    choose_trained(model, family, config.train)
    for name in learnt:
        model.get_parameter(name).requires_grad_(True)
    if typed:
        _freeze(model, typed.keys() - {*learnt}, config.train)
    if LORA in config.train:
        add_adapters(model, family, zeros, config.lora_rank, config.seed)
    if config.checkpointing:
        recompute_blocks(model, family)
    return {
        name: by_parameter[id(parameter)]
        for name, parameter in model.named_parameters()
        if id(parameter) in by_parameter
    }


@dataclass(frozen=True)
class Learnt:
    """What of a parameter of a coarser type is trained: the integers of its weights, its scales."""

    weights: bool
    scales: bool


def through_rounding(
    model: PreTrainedModel, family: Family, config: HealConfig, typed: Mapping[str, Level]
) -> dict[str, Learnt]:
    """The parameters of coarser types that are trained, by name: of types with equal steps alone.

    Args:
        model: The student.
        family: Its family.
        config: The recipe.
        typed: The levels of its parameters that have a coarser type.

    Raises:
        ConfigError: The recipe asks for it and names none of them, or there are none and it names
            nothing else.
    """
    if not _asks_for_rounding(config):
        return {}
    named = set()
    if config.straight_through:
        named = {id(one) for word in config.train for one in _chosen(model, family, word)}
    every = {
        name: Learnt(id(model.get_parameter(name)) in named, SCALES in config.train)
        for name, level in typed.items()
        if storage_type(level.bits).uniform
    }
    found = {name: learnt for name, learnt in every.items() if learnt.weights or learnt.scales}
    if not found and (every or {*config.train} == {SCALES}):
        key = "train=scales" if SCALES in config.train else "straight_through"
        raise ConfigError(
            f"heal.{key}: nothing that it trains has a type with equal steps (as q4_0, q8_0 or "
            "w4g64) in this candidate: leave it out"
        )
    return found


def _asks_for_rounding(config: HealConfig) -> bool:
    """Whether what has a type is to be trained through its rounding."""
    return config.straight_through or SCALES in config.train


def _freeze(model: PreTrainedModel, typed: Collection[str], choices: Sequence[str]) -> None:
    """Takes the gradients of parameters of coarser types away again.

    Raises:
        ConfigError: Nothing is left to train, or adapters were asked for.
    """
    if LORA in choices:
        raise ConfigError(
            "heal.train=lora: adapters are merged into matrices, and those of this candidate have "
            "coarser types: train norms, biases or head"
        )
    for name in typed:
        model.get_parameter(name).requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(
            f"heal.train={','.join(choices)}: all that it names has a coarser type in this "
            "candidate and stays as it is: name norms, biases or head as well, or train through "
            "the rounding with heal.straight_through=true"
        )
    if typed:
        LOG.warning("heal: %s matrices have coarser types and stay as they are", len(typed))


def recompute_blocks(model: PreTrainedModel, family: Family) -> None:
    """Has the backward pass compute each block again from the state before it.

    The switch of transformers works in training mode only, which a student is never in.
    """
    for block in family.blocks(model):
        block.forward = partial(
            checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False
        )


def trained_weights(
    model: PreTrainedModel, family: Family, config: HealConfig, typed: Collection[str] = ()
) -> tuple[list[int], int]:
    """How many weights each trained parameter has, and how many adapters add to these.

    Those that are `typed`, by name, are not trained.
    """
    frozen = {id(model.get_parameter(name)) for name in typed}
    chosen = {
        id(parameter): parameter.numel()
        for choice in config.train
        for parameter in _chosen(model, family, choice)
        if id(parameter) not in frozen
    }
    added = adapter_weights(model, family, config.lora_rank) if LORA in config.train else 0
    return list(chosen.values()), added


def choose_trained(model: PreTrainedModel, family: Family, choices: Sequence[str]) -> None:
    """Lets the parameters of a model have gradients that the choices of ``heal.train`` name.

    Those of adapters are left to `evocompress.healing.adapters`.

    Raises:
        ConfigError: The model has nothing of what a choice names.

    Examples:
        >>> from evocompress.testing.tiny import tiny_loaded
        >>> loaded = tiny_loaded("llama")
        >>> choose_trained(loaded.model, loaded.family, ["norms"])
        >>> [name for name, p in loaded.model.named_parameters() if p.requires_grad][-1]
        'model.norm.weight'
    """
    model.requires_grad_(False)
    for choice in choices:
        if choice in OTHERS:
            continue
        chosen = list(_chosen(model, family, choice))
        if not chosen:
            raise ConfigError(
                f"heal.train={choice}: {type(model).__name__} has none: leave the word out"
            )
        for parameter in chosen:
            parameter.requires_grad_(True)


def _chosen(model: PreTrainedModel, family: Family, choice: str) -> Iterator[nn.Parameter]:
    """The parameters that a word names; those of `OTHERS` name none."""
    if choice in OTHERS:
        return
    if choice == ALL:
        yield from model.parameters()
    elif choice == NORMS:
        for module in model.modules():
            if "norm" in type(module).__name__.lower():
                yield from module.parameters(recurse=False)
    elif choice == BIASES:
        yield from (p for name, p in model.named_parameters() if name.split(".")[-1] == "bias")
    elif choice == HEAD:
        if (head := model.get_output_embeddings()) is not None:
            yield from head.parameters()
    else:
        count = int(choice.removeprefix(LAST))
        for block in family.blocks(model)[-count:]:
            yield from block.parameters()

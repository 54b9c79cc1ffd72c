"""The blocks of a tiny model as it runs them, and whether they can be run one after the other."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping, MutableMapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from evocompress.models.families.derivation.family import Derived
from evocompress.models.families.derivation.stream import has_matrix
from evocompress.models.families.derivation.structure import Unclear
from evocompress.models.families.derivation.tracing import (
    TracedBlock,
    by_name,
    noted,
    output_changed,
)
from evocompress.models.families.stand_ins import run_block
from evocompress.models.families.uneven import text_config


def arguments_of(
    model: PreTrainedModel, blocks: nn.ModuleList, inputs: Mapping[str, Any]
) -> list[tuple[int, dict[str, Any]]]:
    """The index of the block that is called, and what it is called with, in the order of calls."""
    found: list[tuple[int, dict[str, Any]]] = []

    def note(index: int, module: nn.Module, given: Any, named: Any) -> None:
        # Later blocks change mappings that are given to all.
        found.append((index, noted(by_name(module, given, named))))

    hooks = [
        block.register_forward_pre_hook(partial(note, index), with_kwargs=True)
        for index, block in enumerate(blocks)
    ]
    model(**inputs)
    for hook in hooks:
        hook.remove()
    return found


def example_of(block: nn.Module, arguments: dict[str, Any]) -> TracedBlock:
    """A block with what it was called with.

    Raises:
        Unclear: That is no hidden state (1, S, H).
    """
    first = next(iter(inspect.signature(block.forward).parameters))
    hidden = arguments.pop(first)
    if not isinstance(hidden, Tensor):
        raise Unclear("a block is not called with the hidden state first")
    if hidden.ndim != 3:
        shape = tuple(hidden.shape)
        raise Unclear(
            "blocks pass on several streams of hidden states at once, or a map of an image, and "
            f"not one sequence of them: {shape}"
        )
    return TracedBlock(block, hidden, arguments)


def streams_of(examples: list[TracedBlock], hidden_size: int | None) -> str:
    """What to say of blocks that pass on several streams side by side; empty where they do not."""
    width = examples[0].hidden.shape[-1]
    count, rest = divmod(width, hidden_size or width)
    if count < 2 or rest:
        return ""
    return (
        f"blocks pass on {count} streams of hidden states side by side (of {hidden_size} numbers "
        "each), which they mix by matrices of their own, and not one residual stream"
    )


def why_no_list(model: PreTrainedModel, inputs: Mapping[str, Any], paths: Collection[str]) -> str:
    """Why no list of blocks is run one after the other, as far as that is seen.

    Args:
        model: A tiny one.
        inputs: What it is called with.
        paths: Of the lists that may be those of its blocks.
    """
    config = text_config(model.config)
    count, key = config.num_hidden_layers, "num_hidden_layers"
    key = config.attribute_map.get(key, key)
    repeated = []
    for path in paths:
        blocks: Any = model.get_submodule(path)
        order = [index for index, _ in arguments_of(model, blocks, inputs)]
        if not order and len(blocks) == count:
            return (
                f"the model never calls the modules of {path} (but their forward, or none): what "
                "they are given is not seen, and none can be replaced"
            )
        if order == list(range(len(blocks))):
            return (
                f"{path} has {len(blocks)} blocks where the config tells {count} layers "
                f"({key}){_in_each(blocks, count)}"
            )
        if order != sorted(order):
            repeated.append(path)
    if repeated:
        return (
            f"the model runs all blocks of {' and '.join(repeated)} several times over, in turns: "
            "only blocks that are run once, or again before the next one, are supported"
        )
    return "no list of blocks that are run one after the other"


def _in_each(blocks: nn.ModuleList, count: int) -> str:
    """What to say of blocks each of which is several layers; empty of others."""
    each, rest = divmod(count, len(blocks))
    lists = ((n, own) for n, own in blocks[0].named_children() if isinstance(own, nn.ModuleList))
    several = [name for name, own in lists if len(own) == each]
    if rest or each < 2 or not several:
        return ""
    return f": one is {each} of them, with {each} modules in each of {', '.join(several)}"


def lists_apart(model: PreTrainedModel, path: str) -> str:
    """What to say of a model that has the parts of its blocks in lists beside each other.

    Empty where others of the length of one list, with matrices, are not in the same module.
    """
    parent, _, own = path.rpartition(".")
    blocks: Any = model.get_submodule(path)
    children: dict[str, Any] = dict(model.get_submodule(parent).named_children())
    beside = [
        name
        for name, other in children.items()
        if isinstance(other, nn.ModuleList) and len(other) == len(blocks) and has_matrix(other)
    ]
    if beside == [own]:
        return ""
    return (
        f"it has no blocks: {parent or 'the model'} holds their parts in lists beside each other "
        f"({', '.join(beside)}), and adds up what these yield itself"
    )


def check_chain(
    family: Derived, model: PreTrainedModel, last: Tensor, inputs: Mapping[str, Any], ids: Tensor
) -> None:
    """Blocks that are run one after the other must make what the model makes of them.

    Args:
        family: Of the model.
        model: A tiny one.
        last: What its last block yields.
        inputs: What it is called with.
        ids: The same as a batch.

    Raises:
        Unclear: They make something else; the message says what they hand on beside.
    """
    hidden, arguments = family.block_inputs(model, ids)
    held = [_held(given) for given in arguments]
    for block, given in zip(family.blocks(model), arguments, strict=True):
        hidden = run_block(block, hidden, given)
    if held != [_held(given) for given in arguments]:
        raise Unclear(
            "blocks hand on more than the hidden state and what they put into one mapping"
        )
    if torch.equal(family.hidden_of(model, hidden), last):
        return
    why = handed_beside(model, family.layers_path, inputs)
    raise Unclear(why or "the model changes the hidden state between its blocks")


def handed_beside(model: PreTrainedModel, layers_path: str, inputs: Mapping[str, Any]) -> str:
    """What to say of blocks that hand on more than the hidden state; empty where they do not.

    What they put into mappings is not looked at.
    """
    blocks: Any = model.get_submodule(layers_path)
    others = ", ".join(sorted({*_handed_on(model, blocks, inputs)}))
    return others and (
        f"blocks hand on more than the hidden state: {others}, which the model or a block makes of "
        "what earlier blocks yield"
    )


def _held(arguments: Mapping[str, Any]) -> dict[str, int]:
    """How many things the collections have that a block is given."""
    return {
        name: len(own) for name, own in arguments.items() if isinstance(own, MutableMapping | list)
    }


def _handed_on(
    model: PreTrainedModel, blocks: nn.ModuleList, inputs: Mapping[str, Any]
) -> Iterator[str]:
    """The arguments of blocks, beside the hidden state, that follow what the first one yields."""
    plain = arguments_of(model, blocks, inputs)
    with output_changed(blocks[0], _halved):
        other = arguments_of(model, blocks, inputs)
    for (_, before), (_, after) in zip(plain, other, strict=True):
        for name in [*before][1:]:
            if not _same(before[name], after.get(name)):
                yield name


def _halved(output: Any) -> Any:
    """Half of what a block yields."""
    if isinstance(output, tuple):
        return tuple(map(_halved, output))
    return output / 2 if isinstance(output, Tensor) else output


def _same(one: Any, other: Any) -> bool:
    """Whether two arguments have the same values, as far as they are tensors or tuples of them."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return True

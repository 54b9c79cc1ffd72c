"""A family made for a model whose type has no entry of its own."""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from evocompress.core.errors import ModelError
from evocompress.models.config_keys import class_key
from evocompress.models.families.derivation.beside import counted
from evocompress.models.families.derivation.block_kind import Kind, module_classes
from evocompress.models.families.derivation.chain import (
    arguments_of,
    check_chain,
    example_of,
    handed_beside,
    lists_apart,
    streams_of,
    why_no_list,
)
from evocompress.models.families.derivation.encoders import encoder
from evocompress.models.families.derivation.ending import (
    body_of,
    body_path,
    check_outputs,
    logit_keys,
    norm_path,
)
from evocompress.models.families.derivation.experts_left import with_experts_left
from evocompress.models.families.derivation.family import Derived, ToBeDerived
from evocompress.models.families.derivation.handing import (
    argument_of,
    only_read,
    with_handing,
)
from evocompress.models.families.derivation.kept import keep, kept
from evocompress.models.families.derivation.kinds import common_parts, kind_of
from evocompress.models.families.derivation.matrices_alone import MatricesAlone, alone_or_reason
from evocompress.models.families.derivation.purpose import task_of, task_seen, tiny_batch
from evocompress.models.families.derivation.reasons import Float64, of_types, why_not_run
from evocompress.models.families.derivation.shrink import TRIES, random_model, shrunk
from evocompress.models.families.derivation.structure import Unclear
from evocompress.models.families.derivation.tied import (
    first_sharing,
    module_of,
    shared_with_others,
    with_first_blocks,
    with_tied,
)
from evocompress.models.families.derivation.tracing import (
    FAILURES,
    TracedBlock,
    by_default,
    moved_positions,
)
from evocompress.models.families.logits import LogitKeys
from evocompress.models.families.uneven import (
    dense_class,
    dense_config,
    head_shape,
    is_compressed,
    text_config,
)
from evocompress.models.tasks import Task

__all__ = ["Derived", "ToBeDerived", "derive", "derived"]

NO_SWITCHES = ("training", "residual_in_fp32")
"""What tells nothing of a kind of block: tiny models compute in float64."""

MOST_PARAMETERS = 400_000_000
"""Of a tiny model: in float64, with the copy that is made of it, some GiB."""

NOT_DERIVED = "models of type {!r} have no family of their own, and none can be derived"
HINT = "docs/families.md says what blocks must be like"

_KNOWN: dict[str, Derived | str] = {}
"""The family of a class with a config, as text; or why there is none."""


def derived(cls: type[PreTrainedModel], config: PreTrainedConfig) -> Derived | MatricesAlone:
    """The family of a model whose type has none; found once for a class with a config.

    Where its blocks are not understood, it is one of its matrices alone.

    Raises:
        ModelError: There is none; the message says which part is the reason.
    """
    dense = dense_config(config)
    found = derived_or_reason(dense_class(cls), dense)
    if isinstance(found, Derived):
        return with_experts_left(found, config)
    why = f"{NOT_DERIVED.format(dense.model_type)}: {found} ({HINT})"
    if dense is not config or is_compressed(config.model_type):
        raise ModelError(why)
    alone = alone_or_reason(cls, config, why)
    if isinstance(alone, str):
        raise ModelError(f"{why}; nor can its matrices alone be compressed: {alone}")
    return alone


def derived_or_reason(cls: type[PreTrainedModel], config: PreTrainedConfig) -> Derived | str:
    """The same, or why there is none."""
    key = class_key(cls, config)
    if key not in _KNOWN:
        found: Derived | str | None = kept(key)
        if found is None:
            found = _derived_or_reason(cls, config)
            if isinstance(found, Derived):
                keep(key, found)
        _KNOWN[key] = found
    return _KNOWN[key]


def _derived_or_reason(cls: type[PreTrainedModel], config: PreTrainedConfig) -> Derived | str:
    try:
        return derive(cls, config)
    except Unclear as reason:
        return str(reason)
    except FAILURES as error:
        return why_not_run(error, config)


def derive(cls: type[PreTrainedModel], config: PreTrainedConfig) -> Derived:
    """The family of a model class with a config.

    Args:
        cls: Of models of a task that is supported.
        config: Of the model; its sizes do not matter.

    Raises:
        Unclear: It is built in a way that is not understood.
    """
    task = task_of(cls, config)
    skeleton = _skeleton(cls, config)
    count = text_config(config).num_hidden_layers
    lists, layers = dict(_lists(skeleton, count)), count
    with torch.no_grad(), by_default(torch.float64):
        if lists:
            looks = [[_look(block, config) for block in blocks] for blocks in lists.values()]
            layers = max(*map(_needed, looks), *map(first_sharing, lists.values()))
            layers = min(count, layers)
        else:  # fewer blocks may be run as often as there are layers
            lists = dict(_lists(skeleton, None))
        for heads, narrow_heads in TRIES:
            small = shrunk(config, layers, heads=heads, narrow_heads=narrow_heads)
            try:
                found = _tried(cls, small, lists, task)
                if not found.task.cached:
                    return found
                found = counted(found, skeleton)
                return with_first_blocks(found, list(found.blocks(skeleton)), skeleton.config)
            except FAILURES as error:
                failure = error
        if of_types(failure):  # it may not be the only reason
            with Float64():
                _tried(cls, small, lists, task)
        raise failure


def _skeleton(cls: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """A model without values."""
    plain = copy.deepcopy(config)
    plain._attn_implementation = "eager"
    with torch.device("meta"):
        try:
            return cls(plain)
        except FAILURES:
            # Some types leave out of their default config what every checkpoint says.
            return cls(shrunk(config, text_config(config).num_hidden_layers))


def _tried(
    cls: type[PreTrainedModel],
    small: PreTrainedConfig,
    lists: Mapping[str, nn.ModuleList],
    task: Task,
) -> Derived:
    """The family of a model class, read off a random model with a small config.

    Args:
        cls: The class.
        small: The config.
        lists: Of the real model the lists with a module for each layer.
        task: That it serves, as far as the class tells.
    """
    _check_size(cls, small)
    model = random_model(cls, small)
    task = task_seen(task, model)
    batch = tiny_batch(task, model)
    path, examples, runs = _blocks(model, task.inputs(batch), lists)
    calls = runs if max(runs) > 1 else ()
    if calls and task.cached:
        raise Unclear("several layers are one block, and each has a cache of its own")
    try:
        found = _derived(model, path, examples, batch, lists[path], task, calls)
    except (Unclear, *FAILURES):
        hidden_size = getattr(text_config(small), "hidden_size", None)
        why = streams_of(examples, hidden_size) or lists_apart(model, path)
        why = why or handed_beside(model, path, task.inputs(batch))
        if why:
            raise Unclear(why) from None
        raise
    check_chain(found, model, examples[-1].run(), task.inputs(batch), batch)
    if task.cached and not task.causal:
        check_outputs(found, model, batch)
    return found


def _check_size(cls: type[PreTrainedModel], small: PreTrainedConfig) -> None:
    """Refuse a class whose tiny models are large, before one is made.

    Raises:
        Unclear: They are.
    """
    with torch.device("meta"):
        sizes = {name: one.numel() for name, one in cls(small).named_parameters()}
    if sum(sizes.values()) > MOST_PARAMETERS:
        raise Unclear(
            f"a tiny model of it has {sum(sizes.values()) // 10**6} million parameters, which are "
            f"too many to try it: {max(sizes, key=lambda name: sizes[name])} stays large"
        )


def _lists(model: nn.Module, count: int | None) -> Iterator[tuple[str, nn.ModuleList]]:
    """The lists with a module for each layer, or of any length."""
    for path, blocks in model.named_modules():
        if isinstance(blocks, nn.ModuleList) and count in (len(blocks), None):
            yield path, blocks


def _look(block: nn.Module, config: PreTrainedConfig) -> str:
    """What tells blocks of one kind from others: their classes, switches and type of layer."""
    types = set(getattr(text_config(config), "layer_types", None) or ())
    switches = {
        f"{path}.{name}": value
        for path, module in block.named_modules()
        for name, value in vars(module).items()
        if (isinstance(value, bool) and name not in NO_SWITCHES and name[0] != "_")
        or (isinstance(value, str) and value in types)
    }
    return json.dumps([module_classes(block), switches], sort_keys=True)


def _needed(looks: Sequence[str]) -> int:
    """How many of the first layers have every kind of block; at least two."""
    return max(2, *(looks.index(look) + 1 for look in set(looks)))


def _blocks(
    model: PreTrainedModel, inputs: Mapping[str, Any], paths: Collection[str]
) -> tuple[str, list[TracedBlock], list[int]]:
    """The path of the list of blocks, each with what it is called with last, and how often it is.

    As often as there are layers blocks are called, those that are called again before the next.
    """
    count = text_config(model.config).num_hidden_layers
    for path, blocks in _lists(model, None):
        calls = arguments_of(model, blocks, inputs) if path in paths else []
        order = [index for index, _ in calls]
        if order == sorted(order) and len(order) == count and {*order} == {*range(len(blocks))}:
            last = [example_of(blocks[index], given) for index, given in dict(calls).items()]
            return path, last, [order.count(index) for index in range(len(blocks))]
    raise Unclear(why_no_list(model, inputs, paths))


def _derived(
    model: PreTrainedModel,
    path: str,
    examples: Sequence[TracedBlock],
    batch: Tensor,
    real: nn.ModuleList,
    task: Task,
    calls: Sequence[int],
) -> Derived:
    """The family; of each kind of the `real` blocks the first one tells what it is like."""
    looks = [_look(block, model.config) for block in real]
    kinds: list[Kind] = []
    place: dict[str, int] = {}
    caching = _caching(model, batch) if task.cached else [None] * len(examples)
    argument = argument_of(examples) if task.cached else ""
    shared = shared_with_others(real)
    if any(shared[i] != shared[looks.index(look)] for i, look in enumerate(looks)):
        raise Unclear("blocks that are built alike do not share the same parameters with others")
    for look in dict.fromkeys(looks):
        index = looks.index(look)
        if _look(examples[index].block, model.config) != look:
            raise Unclear(_of_another_kind(model, examples[index].block, real[index], path))
        shape = head_shape(model.config, index)
        kind = kind_of(examples[index], real[index], shape, cached=caching[index])
        if argument:
            kind = with_handing(kind, examples[index], argument, shape)
        if shared[index]:
            module = module_of(shared[index])
            common = common_parts(examples[index], module, shape) if module and task.cached else {}
            kind = with_tied(kind, shared[index], common if [*kind.parts] == ["attention"] else {})
        if kind not in kinds:
            kinds.append(kind)
        place[look] = kinds.index(kind)
    among, order = _among(examples[-1]), [place[look] for look in looks]
    if not task.cached:
        return encoder(model, path, examples, batch, among, kinds, order, task, calls)
    norm = norm_path(model, examples[-1].run(), task.inputs(batch))
    body = body_path(model, path, batch) if task.causal else ""
    keys = logit_keys(model, body, batch) if task.causal else LogitKeys()
    both, kinds = _sees_what_comes(model, path, batch), only_read(kinds)
    return Derived(
        *(model.config.model_type, path, norm, among, keys, kinds, order, both, task),
        handed=argument,
        calls=calls,
        body=body,
    )


def _of_another_kind(model: PreTrainedModel, block: nn.Module, real: nn.Module, path: str) -> str:
    """In what a block of a tiny model, after it has been run, differs from the real one."""
    classes = [module_classes(one) for one in (real, block)]
    changed = [name for name in classes[0] if classes[0][name] != classes[1].get(name)]
    fresh: Any = random_model(type(model), model.config).get_submodule(path)
    name = next(iter(changed), "")
    words = [str(one.get(name, "nothing")).rpartition(".")[2] for one in classes]
    if changed and any(
        _look(one, model.config) == _look(real, model.config) for one in fresh.children()
    ):
        return (
            f"its class changes its blocks while it runs: {name} is a {words[0]} at first, and a "
            f"{words[1]} from the first short sequence on"
        )
    return f"a block of a tiny model of it is of another kind ({', '.join(changed)})"


def _sees_what_comes(model: PreTrainedModel, path: str, ids: Tensor) -> bool:
    """Whether what a model makes of its first tokens depends on the last one."""
    other = ids.clone()
    other[:, -1] += 1
    body = body_of(model, path)
    states = (body(input_ids=i, use_cache=False).last_hidden_state for i in (ids, other))
    return any(moved_positions(*(own[:, :-1] for own in states)))


def _among(example: TracedBlock) -> int:
    """Of how many things that a block yields the hidden state is the first; 0 for a tensor.

    Raises:
        Unclear: It is not the first.
    """
    output = example.block(example.hidden, **example.arguments)
    if isinstance(output, Tensor):
        return 0
    if isinstance(output, tuple) and isinstance(output[0], Tensor):
        return len(output)
    raise Unclear(f"a block yields a {type(output).__name__}, not the hidden state first")


def _caching(model: PreTrainedModel, ids: Tensor) -> list[int | None]:
    """For each layer how many values are cached of a token; ``None``: that is not told."""
    unknown: list[int | None] = [None] * text_config(model.config).num_hidden_layers
    try:
        cache: Any = model(input_ids=ids, use_cache=True).past_key_values
    except (*FAILURES, StopIteration):
        return unknown  # without any attention no cache knows how many tokens there have been
    told = [_cached(layer) for layer in getattr(cache, "layers", None) or ()]
    return told if len(told) >= len(unknown) else unknown


def _cached(layer: Any) -> int | None:
    """Values that a layer of a cache (1, heads, S, width) holds of a token.

    ``None`` where what it was given first lies elsewhere.
    """
    held = [getattr(layer, name, None) for name in ("keys", "values")]
    tensors = [one for one in held if isinstance(one, Tensor)]
    if any(one.ndim < 2 for one in tensors):
        return None
    return sum(one.shape[1] * one.shape[-1] for one in tensors)

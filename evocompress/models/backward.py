"""Backward passes whose gradients are read and forgotten, in the memory that there is.

What a backward pass needs of the forward pass is kept for the whole model where it fits. Where
memory is short only what enters each block is kept, in main memory, and block after block is
computed once more on the way back (Chen et al. 2016, 1604.06174); so it is, too, where the
blocks themselves are on the device only while they run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from evocompress.models.families.base import final_norm, final_states
from evocompress.models.families.stand_ins import run_block
from evocompress.models.head import chunk_rows
from evocompress.models.loading import LoadedModel


@dataclass(frozen=True, eq=False)
class Outputs:
    """The outputs of a model at some rows.

    Attributes:
        values: Its outputs (R, V): logits or embeddings.
    """

    values: Tensor

    @cached_property
    def probabilities(self) -> Tensor:
        """Their softmax, float32, computed once for all losses."""
        return self.values.float().softmax(-1)


Loss = Callable[[Outputs, slice], Tensor]
"""The gradient (R, V) by the outputs of some rows: a slice of positions, or of sequences."""

Reader = Callable[[str, Tensor], None]
"""Told the name and the gradient of a parameter, which is freed afterwards."""

Gradients = dict[nn.Parameter, Tensor]
"""By parameter."""

_SHARE = 0.5
"""Of the memory that is available what a backward pass may take."""


def read_gradients(
    loaded: LoadedModel,
    ids: Tensor,
    losses: Sequence[Loss],
    readers: Sequence[Reader],
    *,
    by_block: bool = False,
) -> None:
    """One forward pass, and one backward pass for each loss, over one sequence (1, S).

    Only one parameter's gradient is in memory at a time. Losses are summed over the positions; for
    each of them a reader is told the gradients of the parameters that require one. With `by_block`
    each block is computed twice and only what enters it is kept.
    """
    with torch.enable_grad():  # to the embedding, where its gradient is wanted
        hidden, arguments = loaded.family.block_inputs(loaded.model, ids)
    run = _by_block if by_block else _at_once
    run(loaded, _Pass(hidden, arguments, losses, readers))


def short_of_memory(loaded: LoadedModel, ids: Tensor) -> bool:
    """Whether a pass over a sequence (1, S) would take more than half of the free memory.

    Also where not all blocks are on the device at once.
    """
    if loaded.cache is not None:
        return True
    hidden, arguments = loaded.family.block_inputs(loaded.model, ids)
    blocks = loaded.family.blocks(loaded.model)
    needed = len(blocks) * kept_bytes(blocks[0], hidden, arguments[0])
    return needed > _SHARE * available_bytes(ids.device)


def kept_bytes(block: nn.Module, hidden: Tensor, arguments: Mapping[str, Any]) -> int:
    """Bytes that a backward pass keeps of a call of a block with `hidden` (B, S, H)."""
    own = {parameter.untyped_storage().data_ptr() for parameter in block.parameters()}
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    kept = []
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        # Kept until all is counted: what is freed may come again at the same address.
        kept.append(run_block(block, hidden.detach().requires_grad_(True), arguments))
    return sum(sizes.values())


def available_bytes(device: torch.device) -> int:
    """Memory that can still be had where the model is."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free
    return int(psutil.virtual_memory().available)


@dataclass(frozen=True, eq=False)
class _Pass:
    """One sequence before the blocks.

    Attributes:
        hidden: The states that enter the first block (1, S, H).
        arguments: For each block what it is called with beside the hidden states.
        losses: What to differentiate.
        readers: For each loss who is told.
    """

    hidden: Tensor
    arguments: Sequence[Mapping[str, Any]]
    losses: Sequence[Loss]
    readers: Sequence[Reader]


def _at_once(loaded: LoadedModel, task: _Pass) -> None:
    family, model, hidden = loaded.family, loaded.model, task.hidden
    with torch.enable_grad():
        for block, keywords in zip(family.blocks(model), task.arguments, strict=True):
            hidden = run_block(block, hidden, keywords)
        final = final_states(family, model, hidden)
    seeds = _hidden_gradients(loaded, final.detach(), task)
    _backward(model, "", final, seeds, task.readers)


def _by_block(loaded: LoadedModel, task: _Pass) -> None:
    family, model, hidden = loaded.family, loaded.model, task.hidden.detach()
    blocks, inputs = family.blocks(model), list[Tensor]()
    with torch.no_grad():
        for block, keywords in zip(blocks, task.arguments, strict=True):
            inputs.append(hidden.cpu())
            hidden = run_block(block, hidden, keywords)
    norm, entering = final_norm(family, model), hidden.detach().requires_grad_(True)
    with torch.enable_grad():
        final = final_states(family, model, entering)
    seeds = _hidden_gradients(loaded, final.detach(), task)
    passed = _backward(norm, f"{family.norm_path}.", final, seeds, task.readers, [entering])
    seeds = [gradient for (gradient,) in passed]
    first = {p: i for i in reversed(range(len(blocks))) for p in blocks[i].parameters()}
    waiting: list[Gradients] = [{} for _ in seeds]
    beside: list[dict[Tensor, Tensor]] = [{} for _ in seeds]
    for index in reversed(range(len(blocks))):
        later = {parameter for parameter in blocks[index].parameters() if first[parameter] < index}
        entering = inputs.pop().to(hidden.device).detach().requires_grad_(True)
        given, leaves = _apart(task.arguments[index])
        with loaded.cache.held(blocks[index]) if loaded.cache else nullcontext():
            with torch.enable_grad():
                leaving = run_block(blocks[index], entering, given)
            path, wanted = f"{family.block_names[index]}.", [entering, *leaves.values()]
            common = waiting, later
            passed = _backward(blocks[index], path, leaving, seeds, task.readers, wanted, *common)
        seeds = [own[0] for own in passed]
        for sums, own in zip(beside, passed, strict=True):
            for tensor, gradient in zip(leaves, own[1:], strict=True):
                sums[tensor] = sums[tensor] + gradient if tensor in sums else gradient
    if task.hidden.requires_grad:
        before = (task.hidden, *beside[0])
        ends = [(seed, *sums.values()) for seed, sums in zip(seeds, beside, strict=True)]
        _backward(model, "", before, ends, task.readers)


def _apart(arguments: Mapping[str, Any]) -> tuple[Mapping[str, Any], dict[Tensor, Tensor]]:
    """What a block is called with, and {what of it the embedding gave as well: its stand-in}.

    Stand-ins are leaves: a pass back through one block goes no further than they.
    """
    tensors = [one for one in tree_leaves(arguments) if isinstance(one, Tensor)]
    leaves = {one: one.detach().requires_grad_(True) for one in tensors if one.requires_grad}
    given: dict[str, Any] = tree_map_only(Tensor, lambda one: leaves.get(one, one), arguments)
    return given, leaves


def _backward(
    module: nn.Module,
    prefix: str,
    leaving: Tensor | Sequence[Tensor],
    seeds: Sequence[Tensor | Sequence[Tensor]],
    readers: Sequence[Reader],
    entering: Sequence[Tensor] = (),
    waiting: Sequence[Gradients] = (),
    later: Collection[nn.Parameter] = (),
) -> list[list[Tensor]]:
    """Has the gradients of a module's parameters read, for each loss, from its seed.

    That is its gradient by what came out of the module, `leaving`. `entering` is what went in and
    of which gradients are wanted: they are returned for each loss. Parameters that are read
    `later`, as earlier blocks share them, leave theirs in `waiting`, for each loss.
    """
    every = [(prefix + name, p) for name, p in module.named_parameters() if p.requires_grad]
    named = [(name, parameter) for name, parameter in every if parameter not in later]
    passed_on = []
    for index, (seed, reader) in enumerate(zip(seeds, readers, strict=True)):
        sums = waiting[index] if waiting else {}
        for _, parameter in every:
            parameter.grad = sums.pop(parameter, None)
        with _reading(named, reader):
            torch.autograd.backward(leaving, seed, retain_graph=index + 1 < len(seeds))
        for parameter in later:
            if parameter.grad is not None:
                sums[parameter], parameter.grad = parameter.grad, None
        passed_on.append([torch.zeros_like(t) if t.grad is None else t.grad for t in entering])
        for tensor in entering:
            tensor.grad = None
    return passed_on


def _hidden_gradients(loaded: LoadedModel, hidden: Tensor, task: _Pass) -> list[Tensor]:
    """The gradient of each loss by the final hidden states (1, S, H), in row chunks.

    That by the head's weights is read, where it is wanted. Of a head that is the embedding it is
    one part, the other of which is read later.
    """
    seeds = [torch.zeros_like(hidden) for _ in task.losses]
    head = _trained_head(loaded.model)
    of_head = [torch.zeros_like(p, dtype=torch.float32) for p in head.values() for _ in seeds]
    states = loaded.family.task.states(hidden)
    step = chunk_rows(loaded.model)
    for begin in range(0, len(states), step):
        rows = slice(begin, min(begin + step, len(states)))
        part = states[rows].clone().requires_grad_(True)
        with torch.enable_grad():
            found = loaded.family.outputs(loaded.model, part)
        outputs = Outputs(found.detach())
        for place, (seed, loss) in enumerate(zip(seeds, task.losses, strict=True)):
            outer = loss(outputs, rows).to(found.dtype)
            sources = [part, *head.values()]
            gradient, *rest = torch.autograd.grad(found, sources, outer, retain_graph=True)
            # Of a single sequence these are views of the seed.
            loaded.family.task.states(seed)[rows] = gradient
            for own in rest:
                of_head[place] += own
    for name in head:
        for reader, gradient in zip(task.readers, of_head, strict=True):
            reader(name, gradient)
    return seeds


def _trained_head(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """The head's weights under the name of their parameter, where their gradient is wanted."""
    head = model.get_output_embeddings()
    if head is None or not head.weight.requires_grad:
        return {}
    return {n: p for n, p in model.named_parameters() if p is head.weight}


@contextmanager
def _reading(named: Sequence[tuple[str, nn.Parameter]], reader: Reader) -> Iterator[None]:
    """Hands every gradient over as soon as it is there, and frees it."""

    def hook(name: str) -> Callable[[Tensor], None]:
        def take(parameter: Tensor) -> None:
            assert parameter.grad is not None
            reader(name, parameter.grad)
            parameter.grad = None

        return take

    handles: list[RemovableHandle] = [
        parameter.register_post_accumulate_grad_hook(hook(name))  # type: ignore[no-untyped-call]
        for name, parameter in named
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def differentiable(parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Lets gradients flow to parameters for a while."""
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in parameters.values():
            parameter.requires_grad_(False)
            parameter.grad = None

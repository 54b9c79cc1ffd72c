"""The modules of a block that are taken as wholes, and the norms of its residual stream.

In some classes a child of the block adds the residual stream to what it computes and norms the sum,
as BERT's do: then it is the child's own children that are the parts of the block.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from evocompress.models.families.derivation.tracing import (
    Call,
    TracedBlock,
    first_tensor,
    like,
    mixes_tokens,
    output_changed,
    replaced,
)

LINEAR = (nn.Linear, Conv1D)


def has_matrix(module: nn.Module) -> bool:
    """Whether a module has parameters that are no vectors."""
    return any(parameter.ndim > 1 for parameter in module.parameters())


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm; some have no parameters."""
    named = "norm" in type(module).__name__.lower()
    return not has_matrix(module) and (named or any(True for _ in module.parameters()))


@dataclass(frozen=True)
class Adding:
    """How a module that mixes tokens makes the residual addition itself.

    Attributes:
        residual: The place and the name of the argument that it adds to.
        norm: Path of the norm of the sum; empty without one.
    """

    residual: tuple[int, str]
    norm: str


@dataclass(frozen=True)
class BlockParts:
    """What a block consists of.

    Attributes:
        modules: By path.
        loose: Names of the parameters that are in none of them.
        adding: Those among the modules that make the residual addition and mix tokens themselves,
            not in a module within, as ALBERT's attention does.
    """

    modules: dict[str, nn.Module]
    loose: list[str]
    adding: dict[str, Adding]


def parts_of(example: TracedBlock) -> BlockParts:
    """The parts of a block."""
    calls = example.calls(path for path, _ in example.block.named_modules() if path)
    found = BlockParts({}, [], {})

    def take(prefix: str, module: nn.Module) -> None:
        names = (name for name, _ in module.named_parameters(recurse=False))
        found.loose.extend(f"{prefix}{name}" for name in names)
        for name, child in module.named_children():
            path = f"{prefix}{name}"
            listed = isinstance(child, nn.ModuleList) and path not in calls
            own = None if listed else _adding(example, calls, path)
            if own is None and (listed or _adds(example, calls, path)):
                take(f"{path}.", child)
                continue
            found.modules[path] = child
            if own is not None:
                found.adding[path] = own

    take("", example.block)
    return found


def _adding(example: TracedBlock, calls: Mapping[str, Call], path: str) -> Adding | None:
    """How a module makes the residual addition; ``None`` if not, or if a module in it mixes tokens.

    Without the output of its last linear module, and without the norm, it must yield what it was
    given.
    """
    if not _adds(example, calls, path) or not _mixes(example, calls, path):
        return None
    module, within = example.block.get_submodule(path), _within(calls, path)
    if any(_mixes(example, calls, name) for name in within):
        return None
    last = [name for name in within if isinstance(example.block.get_submodule(name), LINEAR)][-1:]
    norms = [name for name in within if torch.equal(within[name].first, calls[path].first)]
    normed = {norm: nn.Identity() for norm in norms if is_norm(example.block.get_submodule(norm))}
    with ExitStack() as stack:
        stack.enter_context(replaced(example.block, normed))
        for name in last:
            linear = example.block.get_submodule(name)
            stack.enter_context(output_changed(linear, torch.zeros_like))
        passed = first_tensor(module(**calls[path].arguments))
    for place, (name, value) in enumerate(calls[path].arguments.items()):
        if like(value, passed) and torch.equal(value, passed):
            return Adding((place, name), next(iter(normed), ""))
    return None


def _mixes(example: TracedBlock, calls: Mapping[str, Call], path: str) -> bool:
    """Whether a module mixes the tokens of a hidden state."""
    module, call = example.block.get_submodule(path), calls[path]
    given = (name for name, value in call.arguments.items() if like(value, example.hidden))
    return any(mixes_tokens(module, call, name) for name in list(given)[:1])


def _within(calls: Mapping[str, Call], path: str) -> dict[str, Call]:
    """The calls of what is in a module that yields tensors."""
    return {
        name: call
        for name, call in calls.items()
        if name.startswith(f"{path}.") and isinstance(call.output, Tensor | tuple)
    }


def _adds(example: TracedBlock, calls: Mapping[str, Call], path: str) -> bool:
    """Whether a module adds what it is given to what a module in it computes.

    Then that sum is normed in it, or it has but one linear module, or a module in it adds or, being
    none of those that are linear, mixes tokens.
    """
    call = calls.get(path)
    module = example.block.get_submodule(path)
    if call is None or not has_matrix(module) or isinstance(module, LINEAR):
        return False
    within = {name: calls[name] for name in calls if name.startswith(f"{path}.")}
    given = [tensor for tensor in call.tensors if tensor.shape == example.hidden.shape]
    computed = [one.first for one in within.values() if isinstance(one.output, Tensor | tuple)]
    norms = [one for name, one in within.items() if is_norm(example.block.get_submodule(name))]
    if any(is_sum(norm.tensors[0], computed, given) for norm in norms if norm.tensors):
        return True
    if not isinstance(call.output, Tensor | tuple) or not is_sum(call.first, computed, given):
        return False
    linear = [one for one in module.modules() if isinstance(one, LINEAR)]
    inner = [f"{path}.{name}" for name, _ in module.named_children()]
    return len(linear) == 1 or any(
        _adds(example, calls, name) or (name in within and _mixes(example, calls, name))
        for name in inner
    )


def is_sum(tensor: Tensor, ones: Iterable[Tensor], others: Collection[Tensor]) -> bool:
    """Whether a tensor is the sum of one of some tensors and one of others."""
    return any(
        one.shape == tensor.shape == other.shape and torch.equal(one + other, tensor)
        for one in ones
        for other in others
    )


def stream_norms(
    example: TracedBlock,
    calls: Mapping[str, Call],
    norms: Sequence[str],
    ends: Collection[str],
    adding: Mapping[str, Adding],
) -> dict[str, str]:
    """The norms through which the residual stream itself goes.

    Args:
        example: A block.
        calls: Of its parts.
        norms: Paths of the norms among them.
        ends: Paths of the last modules of its sub-layers.
        adding: Those that make the residual addition themselves.

    Returns:
        {path of the last module of a sub-layer: path of the norm that reads the sum of its output
        and the stream}; empty where the stream does not go through norms from end to end, as in
        blocks with norms before their sub-layers.
    """
    found: dict[str, str] = {}
    state = example.run()
    passed: set[str] = set()
    while not torch.equal(state, example.hidden):
        over = next((path for path in adding if torch.equal(calls[path].first, state)), None)
        if over is not None and over not in passed:
            passed.add(over)
            state = calls[over].arguments[adding[over].residual[1]]
            continue
        norm = next((path for path in norms if torch.equal(calls[path].first, state)), None)
        if norm is None or norm in found.values():
            return {}
        others = (path for path in (*norms, *adding) if path != norm)
        before = [example.hidden, *(calls[path].first for path in others)]
        read = calls[norm].tensors[0]
        sums = [(e, one) for e in ends for one in before if is_sum(read, [calls[e].first], [one])]
        if not sums or sums[0][0] in found:
            return {}
        end, state = sums[0]
        found[end] = norm
    return found

"""What the modules of a block are given and yield in one forward pass."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

MOVED = 1e-9
"""What differs by less, as a share of the largest value, differs by rounding in float64."""

FAILURES = (
    *(AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError),
    StrictDataclassError,
)
"""What a model raises that does not run."""


@dataclass(frozen=True)
class Call:
    """One call of a module.

    Attributes:
        path: Of the module within the block.
        arguments: By the names of its parameters.
        output: What it returned.
    """

    path: str
    arguments: Mapping[str, Any]
    output: Any

    @property
    def tensors(self) -> list[Tensor]:
        """Its arguments that are tensors."""
        return [value for value in self.arguments.values() if isinstance(value, Tensor)]

    @property
    def first(self) -> Tensor:
        """The first tensor that it returned."""
        return first_tensor(self.output)


@dataclass(frozen=True)
class TracedBlock:
    """A block with the arguments of a call: the hidden state (1, S, H), and all others.

    Examples:
        >>> example = TracedBlock(nn.Linear(3, 3), torch.ones(1, 2, 3), {})
        >>> example.run().shape
        torch.Size([1, 2, 3])
    """

    block: nn.Module
    hidden: Tensor
    arguments: Mapping[str, Any]

    def run(self) -> Tensor:
        """What the block makes of the hidden state."""
        return first_tensor(self.block(self.hidden, **self.arguments))

    def calls(self, paths: Iterable[str]) -> dict[str, Call]:
        """The first call of each of some modules, in the order in which they ended."""
        found: dict[str, Call] = {}

        def note(path: str, module: nn.Module, given: Any, named: Any, output: Any) -> None:
            found.setdefault(path, Call(path, by_name(module, given, named), output))

        with ExitStack() as stack:
            for path in paths:
                module = self.block.get_submodule(path)
                hook = module.register_forward_hook(partial(note, path), with_kwargs=True)
                stack.callback(hook.remove)
            self.run()
        return found


def by_name(module: nn.Module, given: Iterable[Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by the names of the parameters."""
    names = inspect.signature(module.forward).parameters
    return dict(zip(names, given, strict=False)) | dict(named)


def first_tensor(output: Any) -> Tensor:
    """What a module yields, where some give more than one thing."""
    return (
        output if isinstance(output, Tensor) else next(x for x in output if isinstance(x, Tensor))
    )


@contextmanager
def replaced(block: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """A block with other modules in some places, for a while."""
    former = {path: block.get_submodule(path) for path in modules}
    try:
        for path, module in modules.items():
            block.set_submodule(path, module)
        yield
    finally:
        for path, module in former.items():
            block.set_submodule(path, module)


@contextmanager
def output_changed(module: nn.Module, change: Callable[[Any], Any]) -> Iterator[None]:
    """A module whose output passes through a function, for a while."""
    hook = module.register_forward_hook(lambda _, __, output: change(output))
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def by_default(dtype: torch.dtype) -> Iterator[None]:
    """New tensors are of a type where nothing else is said, for a while."""
    former = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(former)


def moved_positions(before: Tensor, after: Tensor) -> list[bool]:
    """For each position of (1, S, H) whether anything there differs by more than rounding."""
    scale = MOVED * max(1.0, before.abs().max().item())
    return [bool(difference > scale) for difference in (after - before).abs().amax(dim=(0, 2))]


def nudged(tensor: Tensor, position: int) -> Tensor:
    """A copy of (..., S, H) that differs at one position."""
    other = tensor.clone()
    other[..., position, :] += torch.linspace(-1, 1, tensor.shape[-1], dtype=tensor.dtype)
    return other


def like(value: Any, hidden: Tensor) -> bool:
    """Whether an argument is of the shape of a hidden state."""
    return isinstance(value, Tensor) and value.shape == hidden.shape


def mixes_tokens(module: nn.Module, call: Call, hidden: str) -> bool:
    """Whether the first token of an argument changes what a module makes of others.

    Or whether other values of that token in a mapping do, as keys and values of another block.
    """
    before = first_tensor(module(**call.arguments))
    others = (
        with_others(call.arguments, name, own)
        for name, own in call.arguments.items()
        if isinstance(own, MutableMapping) and own
    )
    return before.ndim == 3 and any(
        any(moved_positions(before, first_tensor(module(**arguments)))[1:])
        for arguments in chain([with_nudge(call, hidden)], others)
    )


def with_nudge(call: Call, name: str) -> dict[str, Any]:
    """The arguments of a call, one of which differs at the first token."""
    return {**call.arguments, name: nudged(call.arguments[name], 0)}


def noted(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as they are now; what is put into a mapping among them later is not in these."""
    return {
        name: copy.copy(own) if isinstance(own, MutableMapping) else own
        for name, own in arguments.items()
    }


def with_others(arguments: Mapping[str, Any], argument: str, keys: Iterable[str]) -> dict[str, Any]:
    """Arguments with other values of the first token under some keys of a mapping among them."""
    found = noted(arguments)
    for key in keys:
        own = found[argument][key]
        if isinstance(own, tuple):
            found[argument][key] = tuple(
                nudged(one, 0) if isinstance(one, Tensor) else one for one in own
            )
    return found

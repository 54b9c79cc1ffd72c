"""The modules of a block that are taken as wholes, and the norms of its residual stream.

In some classes a child of the block adds the residual stream to what it computes and norms the sum,
as BERT's do: then it is the child's own children that are the parts of the block.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from evocompress.models.families.derivation.tracing import Call, TracedBlock

LINEAR = (nn.Linear, Conv1D)


def has_matrix(module: nn.Module) -> bool:
    """Whether a module has parameters that are no vectors."""
    return any(parameter.ndim > 1 for parameter in module.parameters())


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm; some have no parameters."""
    named = "norm" in type(module).__name__.lower()
    return not has_matrix(module) and (named or any(True for _ in module.parameters()))


def parts_of(example: TracedBlock) -> tuple[dict[str, nn.Module], list[str]]:
    """The parts of a block by path, and the parameters that are in none of them."""
    calls = example.calls(path for path, _ in example.block.named_modules() if path)
    parts: dict[str, nn.Module] = {}
    loose: list[str] = []

    def take(path: str, module: nn.Module) -> None:
        loose.extend(f"{path}{name}" for name, _ in module.named_parameters(recurse=False))
        for name, child in module.named_children():
            if _adds(example, calls, f"{path}{name}"):
                take(f"{path}{name}.", child)
            else:
                parts[f"{path}{name}"] = child

    take("", example.block)
    return parts, loose


def _adds(example: TracedBlock, calls: Mapping[str, Call], path: str) -> bool:
    """Whether a module adds what it is given to what a module in it computes.

    Then that sum is normed in it, or it has but one linear module, or a module in it adds.
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
    inner = (f"{path}.{name}" for name, _ in module.named_children())
    return len(linear) == 1 or any(_adds(example, calls, name) for name in inner)


def is_sum(tensor: Tensor, ones: Iterable[Tensor], others: Collection[Tensor]) -> bool:
    """Whether a tensor is the sum of one of some tensors and one of others."""
    return any(
        one.shape == tensor.shape == other.shape and torch.equal(one + other, tensor)
        for one in ones
        for other in others
    )


def stream_norms(
    example: TracedBlock, calls: Mapping[str, Call], norms: Sequence[str], ends: Collection[str]
) -> dict[str, str]:
    """The norms through which the residual stream itself goes.

    Args:
        example: A block.
        calls: Of its parts.
        norms: Paths of the norms among them.
        ends: Paths of the last modules of its sub-layers.

    Returns:
        {path of the last module of a sub-layer: path of the norm that reads the sum of its output
        and the stream}; empty where the stream does not go through norms from end to end, as in
        blocks with norms before their sub-layers.
    """
    found: dict[str, str] = {}
    state = example.run()
    while not torch.equal(state, example.hidden):
        norm = next((path for path in norms if torch.equal(calls[path].first, state)), None)
        if norm is None or norm in found.values():
            return {}
        before = [example.hidden, *(calls[path].first for path in norms if path != norm)]
        read = calls[norm].tensors[0]
        sums = [(e, one) for e in ends for one in before if is_sum(read, [calls[e].first], [one])]
        if not sums or sums[0][0] in found:
            return {}
        end, state = sums[0]
        found[end] = norm
    return found

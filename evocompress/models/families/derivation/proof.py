"""A sub-layer made narrower, against the same one with what was cut set to zero.

Which attributes a module has to be told where its heads become fewer is found by trying: those that
are a number of heads, or a width that follows from one, in a model whose sizes all differ.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from evocompress.core.widths import Widths
from evocompress.models.families.branches import Attributes, Matrix
from evocompress.models.families.coupling import Follower, Kept, index_of
from evocompress.models.families.derivation.residual_branch import ResidualBranch
from evocompress.models.families.derivation.stream import LINEAR
from evocompress.models.families.derivation.tracing import FAILURES, TracedBlock

CLOSE = 1e-6
"""As a share of the largest value: what rounding explains, where classes compute in float32."""

WidthNumber = Callable[[Widths], int]

NUMBERS: Mapping[str, WidthNumber] = {
    "heads": lambda widths: widths.heads,
    "kv_heads": lambda widths: widths.kv_heads,
    "groups": lambda widths: widths.heads // widths.kv_heads,
    "keys": lambda widths: widths.kv_heads * widths.head_dim,
    "packed": lambda widths: (widths.heads + 2 * widths.kv_heads) * widths.head_dim,
    "queries": lambda widths: widths.heads * widths.head_dim,
}
"""What an attribute of an attention can be."""


@dataclass(frozen=True)
class WidthSettings:
    """What the modules of a sub-layer are told when its width changes.

    Attributes:
        numbers: {path of a module, a point, an attribute of it: a key of `NUMBERS`}.
        config: Whether the core reads the number of heads from its config.
    """

    numbers: Mapping[str, str]
    config: bool = False

    def attributes(self, block: nn.Module, branch: ResidualBranch, widths: Widths) -> Attributes:
        """The attributes at some widths."""
        found: Attributes = {}
        for place, key in self.numbers.items():
            path, _, name = place.rpartition(".")
            found[path, name] = NUMBERS[key](widths)
        if self.config:
            core = branch.core[0]
            config: Any = copy.copy(block.get_submodule(core).config)
            config.num_attention_heads = widths.heads
            if hasattr(config, "num_key_value_heads"):
                config.num_key_value_heads = widths.kv_heads
            found[core, "config"] = config
        return found


def proven(
    example: TracedBlock,
    branch: ResidualBranch,
    matrices: Sequence[Matrix],
    followers: Sequence[Follower],
    dense: Widths,
) -> WidthSettings | None:
    """The settings by which every narrower form equals the silenced one; ``None`` if none do."""
    for settings in _candidates(example, branch, dense):
        if all(
            _holds(example, branch, matrices, followers, settings, dense, *form)
            for form in forms(branch, dense)
        ):
            return settings
    return None


def _candidates(
    example: TracedBlock, branch: ResidualBranch, dense: Widths
) -> Iterator[WidthSettings]:
    """The settings to be tried, the fewest first."""
    if branch.kind == "mlp":
        yield WidthSettings({})
        return
    keys = ["heads", "kv_heads", "groups", "keys", "packed"]
    if dense.heads == dense.kv_heads:
        keys = ["heads"]
    sure, all_of_them = (
        _found(example, branch, dense, keys),
        _found(example, branch, dense, [*keys, "queries"]),
    )
    has_config = hasattr(example.block.get_submodule(branch.core[0]), "config")
    for numbers in (sure, all_of_them):
        for config in (False, True)[: 1 + has_config]:
            yield WidthSettings(numbers, config)


def _found(
    example: TracedBlock, branch: ResidualBranch, dense: Widths, keys: Sequence[str]
) -> dict[str, str]:
    """The attributes of a core, and of what is in it, whose value is that of a number."""
    meanings = {NUMBERS[key](dense): key for key in reversed(keys)}
    core = example.block.get_submodule(branch.core[0])
    return {
        f"{path}.{name}": meanings[value]
        for path, module in core.named_modules(prefix=branch.core[0])
        if not isinstance(module, LINEAR)
        for name, value in vars(module).items()
        if type(value) is int and value in meanings and not name.endswith("idx")
    }


def forms(branch: ResidualBranch, dense: Widths) -> Iterator[tuple[Widths, Kept]]:
    """Widths to be tried, with the heads or channels that stay."""
    if branch.kind == "mlp":
        for channels in (torch.tensor([0]), torch.arange(1, dense.channels, 3)):
            kept = Kept(torch.zeros(1, dtype=torch.int64), channels)
            yield replace(dense, channels=len(channels)), kept
        return
    size = dense.heads // dense.kv_heads
    for groups in range(1, dense.kv_heads + 1):
        for each in range(1, size + 1):
            if groups * each == dense.heads:
                continue
            kv = torch.arange(dense.kv_heads)[-groups:]
            heads = (kv[:, None] * size + torch.arange(size)[-each:]).flatten()
            yield replace(dense, heads=len(heads), kv_heads=groups), Kept(kv, heads)


def _holds(
    example: TracedBlock,
    branch: ResidualBranch,
    matrices: Sequence[Matrix],
    followers: Sequence[Follower],
    settings: WidthSettings,
    dense: Widths,
    widths: Widths,
    kept: Kept,
) -> bool:
    """Whether the narrow sub-layer yields what the silenced one does."""
    output = next(matrix for matrix in matrices if matrix.columns)
    with restored(example.block.get_submodule(output.path)) as module:
        silence_columns(module, output, kept, dense)
        expected = example.run()
    with narrowed(example, branch, matrices, followers, settings, dense, widths, kept):
        try:
            found = example.run()
        except FAILURES:
            return False
    scale = CLOSE * max(1.0, expected.abs().max().item())
    return found.shape == expected.shape and bool((found - expected).abs().max() <= scale)


@contextmanager
def narrowed(
    example: TracedBlock,
    branch: ResidualBranch,
    matrices: Sequence[Matrix],
    followers: Sequence[Follower],
    settings: WidthSettings,
    dense: Widths,
    widths: Widths,
    kept: Kept,
) -> Iterator[None]:
    """A block with a narrower sub-layer for a while."""
    with ExitStack() as stack:
        for matrix in matrices:
            cut(
                stack.enter_context(restored(example.block.get_submodule(matrix.path))),
                matrix,
                kept,
                dense,
            )
        for follower in followers:
            stack.enter_context(_cut_follower(example.block, follower, kept, dense))
        for (path, name), value in settings.attributes(example.block, branch, widths).items():
            stack.enter_context(told(example.block.get_submodule(path), name, value))
        yield


@contextmanager
def restored(module: nn.Module) -> Iterator[nn.Module]:
    """A module whose weights and number of outputs may be changed for a while."""
    former = {parameter: parameter.data for parameter in module.parameters()}
    outputs = getattr(module, "nf", None)
    try:
        yield module
    finally:
        for parameter, values in former.items():
            parameter.data = values
        if outputs is not None:
            module.nf = outputs


@contextmanager
def _cut_follower(
    block: nn.Module, follower: Follower, kept: Kept, dense: Widths
) -> Iterator[None]:
    """Leave what has a value for each head only those of some for a while."""
    former = follower.tensors(block)
    try:
        for name, values in former.items():
            index = index_of((follower.axis,), kept, dense.lengths, len(values))
            block.get_parameter(name).data = values[index]
        yield
    finally:
        for name, values in former.items():
            block.get_parameter(name).data = values


@contextmanager
def told(module: nn.Module, name: str, value: Any) -> Iterator[None]:
    """A module with another value of an attribute for a while."""
    former = getattr(module, name)
    try:
        setattr(module, name, value)
        yield
    finally:
        setattr(module, name, former)


def silence_columns(module: nn.Module, matrix: Matrix, kept: Kept, dense: Widths) -> None:
    """Leave a linear module only some of its inputs; the others count as zero."""
    values = module.get_parameter("weight").data.clone()
    columns = values if matrix.transposed else values.T
    dead = torch.ones(len(columns), dtype=torch.bool)
    dead[index_of(matrix.columns, kept, dense.lengths, len(columns))] = False
    columns[dead] = 0
    module.get_parameter("weight").data = values


def cut(module: nn.Module, matrix: Matrix, kept: Kept, dense: Widths) -> None:
    """Leave a linear module only some of its heads or channels, in place."""
    weight = module.get_parameter("weight")
    values: Tensor = weight.data.T if matrix.transposed else weight.data
    if matrix.rows:
        rows = index_of(matrix.rows, kept, dense.lengths, len(values))
        values = values[rows]
        if module.bias is not None:
            bias = module.get_parameter("bias")
            bias.data = bias.data[rows]
    if matrix.columns:
        values = values[:, index_of(matrix.columns, kept, dense.lengths, values.shape[1])]
    weight.data = values.T.contiguous() if matrix.transposed else values.contiguous()
    if isinstance(module, Conv1D):
        module.nf = values.shape[0]

"""Statistics of the inputs of a block's matrices, summed up while the block runs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from evocompress.models.families.patches import rows_read

LEAST_PANEL, PANELS = 192, 8
"""A Gram matrix is summed in panels of rows: the most panels, and the fewest rows of one."""

TOGETHER = 2048
"""Most tokens whose products are made together; never more than there are features, so that the
tokens take no more memory than the sum. With few tokens, such as an expert's share of a sequence,
reading and writing the sum takes longer than the products."""


def gram_operations(tokens: float, inputs: int) -> float:
    """Floating-point operations of summing a Gram matrix (inputs, inputs) over tokens."""
    panel = _panel(inputs)
    entries = sum(
        min(panel, inputs - start) * (inputs - start) for start in range(0, inputs, panel)
    )
    return 2.0 * tokens * entries


def _panel(inputs: int) -> int:
    return max(LEAST_PANEL, -(-inputs // PANELS))


class _Gram:
    """A Gram matrix (in, in), `total`, to which many tokens are added at a time."""

    def __init__(self, features: int, device: torch.device) -> None:
        self.total = torch.zeros(features, features, device=device)
        self._waiting = torch.empty(min(TOGETHER, features), features, device=device)
        self._count = 0

    def add(self, rows: Tensor) -> None:
        """Add tokens (R, in), float32."""
        while len(rows):
            room = len(self._waiting) - self._count
            part, rows = rows[:room], rows[room:]
            self._waiting[self._count : self._count + len(part)] = part
            self._count += len(part)
            if len(part) == room:
                self._multiply()

    def finish(self) -> Tensor:
        """The sum over all tokens so far."""
        self._multiply()
        return self.total.triu_().add_(self.total.triu(1).T)

    def _multiply(self) -> None:
        """Add to the entries on the diagonal and right of it: little more than half of the work."""
        rows, panel = self._waiting[: self._count], _panel(len(self.total))
        for start in range(0, len(self.total), panel):
            inside = slice(start, start + panel)
            self.total[inside, start:].addmm_(rows[:, inside].T, rows[:, start:])
        self._count = 0


COUNT = "count"
"""Tokens that were summed over: a sum without features, (1,)."""

_ADDED: Mapping[str, Callable[[Tensor], Tensor | int]] = {
    "squares": lambda inputs: inputs.square().sum((0, 1)),
    "sums": lambda inputs: inputs.sum((0, 1)),
    "magnitudes": lambda inputs: inputs.abs().mean(1).square_().sum(0),
    COUNT: lambda inputs: inputs.shape[0] * inputs.shape[1],
}

Sums = dict[str, Tensor]
"""Float32 sums over tokens by what is summed: ``gram`` xxᵀ (in, in), ``squares`` x² (in,),
``sums`` x (in,), and over sequences ``magnitudes`` (mean |x|)² (in,)."""


@contextmanager
def collecting(
    readers: Mapping[str, nn.Module],
    needs: Mapping[str, Collection[str]],
    length: int,
    routed: Collection[str] = (),
) -> Iterator[dict[str, Sums]]:
    """Sum up what is needed over every token that passes through a block.

    Args:
        readers: For each input a module that reads it.
        needs: What to sum of each input (keys of `Sums`).
        length: Tokens of a sequence; blocks may hand them to their matrices in one long row.
        routed: Inputs whose tokens may or may not be read, as those of an expert: a token counts
            as a sequence. Their tokens are counted, too (`COUNT`).
    """
    sums: dict[str, Sums] = {word: {} for word in needs}
    observers = {
        word: _Observer((*kinds, COUNT), 1) if word in routed else _Observer(kinds, length)
        for word, kinds in needs.items()
    }
    with ExitStack() as hooks:
        for word, observer in observers.items():
            hooks.callback(readers[word].register_forward_pre_hook(observer).remove)
        yield sums
    for word, observer in observers.items():
        sums[word] |= observer.finish()


class _Observer:
    """A hook that sums up the inputs of a module."""

    def __init__(self, needs: Collection[str], length: int) -> None:
        self._needs = frozenset(needs)
        self._length = length
        self._gram: _Gram | None = None
        self._sums: Sums = {}

    def __call__(self, module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        inputs = rows_read(module, arguments[0], self._length).float()
        features = inputs.shape[-1]
        if "gram" in self._needs:
            self._gram = self._gram or _Gram(features, inputs.device)
            self._gram.add(inputs.flatten(0, 1))
        for need in self._needs - {"gram"}:
            if need not in self._sums:
                shape = (1,) if need == COUNT else (features,)
                self._sums[need] = torch.zeros(shape, device=inputs.device)
            self._sums[need] += _ADDED[need](inputs)

    def finish(self) -> Sums:
        """The sums; none where the module was never called."""
        return self._sums | ({"gram": self._gram.finish()} if self._gram else {})

"""Statistics of what the matrices of a block read, summed up while the block runs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from evocompress.families.patches import rows_read

LEAST_PANEL, PANELS = 192, 8
"""A Gram matrix is summed in panels of rows, at most so many, and at least so wide."""


def gram_operations(tokens: int, inputs: int) -> float:
    """Floating-point operations of summing a Gram matrix."""
    panel = _panel(inputs)
    entries = sum(
        min(panel, inputs - start) * (inputs - start) for start in range(0, inputs, panel)
    )
    return 2.0 * tokens * entries


def _panel(inputs: int) -> int:
    return max(LEAST_PANEL, -(-inputs // PANELS))


def _add_gram(total: Tensor, inputs: Tensor) -> None:
    """Add to what lies on the diagonal and right of it: little more than half of the products."""
    rows = inputs.flatten(0, 1)
    panel = _panel(len(total))
    for start in range(0, len(total), panel):
        inside = slice(start, start + panel)
        total[inside, start:].addmm_(rows[:, inside].T, rows[:, start:])


def _mirror(total: Tensor) -> None:
    """Make a Gram matrix whole of which only the upper triangle is right."""
    total.triu_().add_(total.triu(1).T)


def _add_squares(total: Tensor, inputs: Tensor) -> None:
    total.add_(inputs.square().sum((0, 1)))


def _add_sums(total: Tensor, inputs: Tensor) -> None:
    total.add_(inputs.sum((0, 1)))


def _add_magnitudes(total: Tensor, inputs: Tensor) -> None:
    total.add_(inputs.abs().mean(1).square_().sum(0))


def _add_count(total: Tensor, inputs: Tensor) -> None:
    total.add_(inputs.shape[0] * inputs.shape[1])


COUNT = "count"
"""Tokens that were summed over: a sum without features, (1,)."""

_ADD: Mapping[str, Callable[[Tensor, Tensor], None]] = {
    "gram": _add_gram,
    "squares": _add_squares,
    "sums": _add_sums,
    "magnitudes": _add_magnitudes,
    COUNT: _add_count,
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
        routed: Inputs of which each token may or may not be read, as an expert's: a token counts
            as a sequence. Their tokens are counted, too (`COUNT`).

    Yields:
        The sums by input, to be read when the context has ended.
    """
    sums: dict[str, Sums] = {}
    with ExitStack() as hooks:
        for word, kinds in needs.items():
            found = sums.setdefault(word, {})
            observer = _Observer(found, kinds, length)
            if word in routed:
                observer = _Observer(found, (*kinds, COUNT), 1)
            hooks.callback(readers[word].register_forward_pre_hook(observer).remove)
        yield sums
    for found in sums.values():
        if "gram" in found:
            _mirror(found["gram"])


class _Observer:
    """A hook that adds the input of a module to the sums."""

    def __init__(self, sums: Sums, needs: Collection[str], length: int) -> None:
        self._sums = sums
        self._needs = needs
        self._length = length

    def __call__(self, module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        inputs = rows_read(module, arguments[0], self._length).float()
        features = inputs.shape[-1]
        for need in self._needs:
            if need not in self._sums:
                shape = {"gram": (features, features), COUNT: (1,)}.get(need, (features,))
                self._sums[need] = torch.zeros(shape, device=inputs.device)
            _ADD[need](self._sums[need], inputs)

"""Statistics of what the matrices of a block read, summed up while the block runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from evocompress.criteria.base import Needs
from evocompress.families import Matrix


@contextmanager
def collecting(
    block: nn.Module, matrices: Sequence[Matrix], needs: Needs
) -> Iterator[dict[str, Tensor]]:
    """Sum XᵀX, or its diagonal, over every token that passes through a block.

    Matrices with the same input are observed once.

    Args:
        block: The block.
        matrices: Which of its matrices are wanted.
        needs: What to collect; ``nothing`` observes nothing.

    Yields:
        The sums so far by input, float32: (in, in) for ``gram``, (in,) for ``squares``.
    """
    sums: dict[str, Tensor] = {}
    readers = {matrix.input: matrix.path for matrix in reversed(matrices)}
    with ExitStack() as hooks:
        if needs != "nothing":
            for word, path in readers.items():
                observer = _Observer(sums, word, needs)
                handle = block.get_submodule(path).register_forward_pre_hook(observer)
                hooks.callback(handle.remove)
        yield sums


class _Observer:
    """A hook that adds the input of a module to the sums."""

    def __init__(self, sums: dict[str, Tensor], word: str, needs: Needs) -> None:
        self._sums = sums
        self._word = word
        self._needs = needs

    def __call__(self, module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        inputs = arguments[0].flatten(0, -2).float()
        features = inputs.shape[-1]
        if self._word not in self._sums:
            shape = (features, features) if self._needs == "gram" else (features,)
            self._sums[self._word] = torch.zeros(shape, device=inputs.device)
        if self._needs == "gram":
            self._sums[self._word].addmm_(inputs.T, inputs)
        else:
            self._sums[self._word].add_(inputs.square().sum(0))

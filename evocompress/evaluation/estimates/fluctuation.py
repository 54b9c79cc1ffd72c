"""FLAP's fluctuation scores of heads and channels (An et al. 2023, 2312.11983)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from evocompress.compression.live_model import LiveModel
from evocompress.core.types import DENSE, Candidate
from evocompress.evaluation.estimates.base import Rows, Subject, run_hooked
from evocompress.evaluation.estimates.matrices import KeptMatrix, kept_matrices
from evocompress.models.families.patches import rows_read


def fluctuation(subject: Subject) -> Rows:
    """FLAP's score of every head and channel, standardised so that layers are comparable.

    WIFV, the variance of an input of the sub-layer's output matrix times the squared norm of its
    column. As published, attention's are squared, then the columns of each layer standardised,
    then those of each head averaged. The last cannot be done in another order, which is why the
    values are not raw.

    Returns:
        For every attention and MLP that the candidate keeps, one value per query head or
        channel that is left in it. The c-th value of a mixture of experts, which keep the same
        number of channels but each its own, is about the c-th best of every expert that saw a
        token: the mean of their scores.
    """
    live, candidate = subject.live, subject.candidate
    live.restore()
    observed: dict[str, list[_Output]] = {}
    for matrix in kept_matrices(live, candidate):
        if matrix.matrix.part == "weight":
            observed.setdefault(matrix.sublayer, []).append(_Output(matrix))
    handles = [
        output.module.register_forward_pre_hook(output.add)
        for outputs in observed.values()
        for output in outputs
    ]
    run_hooked(subject, handles)
    mixture = live.loaded.family.mixture is not None
    return {
        name: _channels(outputs, mixture)
        if name.endswith(".mlp")
        else outputs[0].heads(_left(live, candidate, name))
        for name, outputs in observed.items()
    }


def _left(live: LiveModel, candidate: Candidate, attention: str) -> int:
    """Query heads that are left in an attention."""
    level = candidate.by_name.get(attention, DENSE)
    return live.widths(live.units[attention].block).at(level).heads


def _channels(outputs: list[_Output], mixture: bool) -> tuple[float, ...]:
    """The score of every channel of an MLP; of a mixture of every rank among its experts' own."""
    if not mixture:
        return outputs[0].channels()
    seen = [output.fluctuations() for output in outputs if output.tokens]
    if not seen:
        return (0.0,) * len(outputs[0].fluctuations())
    ranked = torch.stack([scores.sort(descending=True).values.cpu() for scores in seen])
    return tuple(_standardised(ranked.mean(0)).tolist())


class _Output:
    """The output matrix of a sub-layer and the moments of what it reads."""

    def __init__(self, matrix: KeptMatrix) -> None:
        self.module = matrix.module
        stored = matrix.parameter
        self._patch = stored[0, 0].numel() if stored.ndim > 2 else 1
        self._norms = matrix.weight.double().square().sum(0)
        self._sums = torch.zeros_like(self._norms)
        self._squares = torch.zeros_like(self._norms)
        self.tokens = 0

    def add(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """A forward pre-hook."""
        rows = rows_read(self.module, inputs[0], 1).flatten(0, -2).double()
        device = self._sums.device
        self._sums += rows.sum(0).to(device)
        self._squares += rows.square().sum(0).to(device)
        self.tokens += len(rows)

    def channels(self) -> tuple[float, ...]:
        """The score of every input, or of every patch of a convolution's."""
        scores = _standardised(self.fluctuations())
        return tuple(scores.view(-1, self._patch).mean(1).tolist())

    def heads(self, count: int) -> tuple[float, ...]:
        """The score of every head, where there are `count`."""
        scores = _standardised(self.fluctuations().square())
        return tuple(scores.view(count, -1).mean(1).tolist())

    def fluctuations(self) -> Tensor:
        """The variance of every input times the squared norm of its column."""
        variances = self._squares / self.tokens - (self._sums / self.tokens).square()
        return variances * self._norms


def _standardised(scores: Tensor) -> Tensor:
    return (scores - scores.mean()) / scores.std()

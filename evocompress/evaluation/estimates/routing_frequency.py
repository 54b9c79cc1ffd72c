"""How often the router of a mixture chooses each expert."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from evocompress.evaluation.estimates.base import Rows, Subject, run_hooked
from evocompress.evaluation.estimates.experts import Mixed, mixtures


def routing_frequency(subject: Subject) -> Rows:
    """Shares of a layer's routing that each expert has, at the candidate.

    The common baseline of expert pruning, see Lu et al. 2024 (2402.14800).

    Returns:
        For every expert that the candidate keeps the share of (token, expert) pairs that are
        its own, and the share of the routing weights: both add up to 1 over a layer.
    """
    live = subject.live
    live.apply(subject.candidate)
    counters = [_Counter(mixed) for mixed in mixtures(live, subject.candidate)]
    handles = [each.mixed.experts.register_forward_hook(each.add) for each in counters]
    run_hooked(subject, handles)
    return {name: row for each in counters for name, row in each.rows().items()}


class _Counter:
    """What one router has chosen so far."""

    def __init__(self, mixed: Mixed) -> None:
        self.mixed = mixed
        self._sums = torch.zeros(2, len(mixed.kept), dtype=torch.float64)

    def add(self, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """A forward hook: experts are given tokens, their numbers and their weights."""
        numbers, shares, _made = self.mixed.routed(inputs, output)
        chosen, weights = numbers.flatten().cpu(), shares.flatten().double().cpu()
        self._sums[0].index_add_(0, chosen, torch.ones_like(weights))
        self._sums[1].index_add_(0, chosen, weights)

    def rows(self) -> Rows:
        """For each expert its two shares."""
        shares = (self._sums / self._sums.sum(dim=1, keepdim=True)).T
        return dict(zip(self.mixed.kept, map(tuple, shares.tolist()), strict=True))

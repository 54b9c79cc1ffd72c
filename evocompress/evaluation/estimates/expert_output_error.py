"""What the output of a mixture loses when one of its experts is gone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from evocompress.compression.live_model import put_attributes
from evocompress.evaluation.estimates.base import Rows, Subject, run_hooked
from evocompress.evaluation.estimates.experts import Mixed, mixtures


def expert_output_error(subject: Subject) -> Rows:
    """‖F(x) - F'(x)‖² / ‖F(x)‖² of a mixture F and the same without an expert, over all tokens.

    F is the MLP, with experts that every token passes; where router and experts lie in the block
    beside a dense MLP, as Gemma 4's, it is these two alone.

    The reconstruction loss of Lu et al. 2024 (2402.14800) for single experts, as a share of the
    output's energy so that layers are comparable. The router chooses among the others. Only tokens
    that used the expert pass the mixture again: ask for it with as many forward passes more as a
    token uses experts. The others choose as before. Where the weights of the chosen ones add up to
    1, nothing changes for them; elsewhere a softmax without a share of p makes the output of the
    chosen experts, not that of a shared one, 1 / (1 - p) as large.

    Returns:
        One value for every expert that the candidate keeps. A mixture that has no more experts
        than a token uses gets none.
    """
    live = subject.live
    live.apply(subject.candidate)
    measured = [
        _Measured(mixed)
        for mixed in mixtures(live, subject.candidate)
        if len(mixed.kept) > mixed.active
    ]
    handles = [each.mixed.router.register_forward_hook(each.enter) for each in measured]
    handles += [each.mixed.experts.register_forward_hook(each.note) for each in measured]
    handles += [each.mixed.core.register_forward_hook(each.add) for each in measured]
    run_hooked(subject, handles)
    return {name: row for each in measured for name, row in each.rows().items()}


class _Measured:
    """One mixture, and the errors so far."""

    def __init__(self, mixed: Mixed) -> None:
        self.mixed = mixed
        self._errors = [0.0] * len(mixed.kept)
        self._energy = 0.0
        self._entered = self._routed = self._chosen = torch.zeros(0)
        self._grow = not getattr(mixed.router, "norm_topk_prob", True)

    def enter(self, _: Any, inputs: tuple[Tensor, ...], output: Any) -> None:
        """A forward hook: what the router chooses by (N, H)."""
        self._entered = inputs[0].flatten(0, -2)

    def note(self, _: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """A forward hook: the chosen experts (N, K), and what they make of the tokens (N, H)."""
        self._chosen, _, self._routed = self.mixed.routed(inputs, output)

    def add(self, module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """A forward hook: the mixture runs again without each of its experts."""
        yielded = output[0] if isinstance(output, tuple) else output
        tokens, whole = inputs[0].flatten(0, -2), yielded.flatten(0, -2)
        chosen = self._chosen
        energies = self._routed.double().square().sum(-1)
        self._energy += float(whole.double().square().sum())
        for number in range(len(self.mixed.kept)):
            users = (chosen == number).any(dim=-1)
            if bool(users.any()):
                without = self._without(number, module, tokens, users)
                change = (without - whole[users]).double()
                self._errors[number] += float(change.square().sum())
            if self._grow:
                share = (
                    self.mixed.router(tokens)[0]
                    .double()
                    .softmax(-1)[~users, self.mixed.numbers[number]]
                )
                self._errors[number] += float((energies[~users] * (share / (1 - share)) ** 2).sum())

    def _without(self, number: int, module: nn.Module, tokens: Tensor, users: Tensor) -> Tensor:
        """What the mixture makes of some tokens (N, H) without an expert; its hook is not run."""
        mixed = self.mixed
        left = [i for i in range(len(mixed.indices)) if i != number]
        noted = self._entered, self._routed, self._chosen
        former = put_attributes(mixed.block, mixed.routing(left))
        try:
            if mixed.alone:
                result = module.forward(tokens[users], *mixed.choice(self._entered[users]))
            else:
                result = module.forward(tokens[users][None])
        finally:
            put_attributes(mixed.block, former)
            self._entered, self._routed, self._chosen = noted
        found: Tensor = result[0] if isinstance(result, tuple) else result
        return found.view(-1, tokens.shape[-1])

    def rows(self) -> Rows:
        """For each expert its error."""
        errors = [error / self._energy if self._energy else 0.0 for error in self._errors]
        return {name: (error,) for name, error in zip(self.mixed.kept, errors, strict=True)}

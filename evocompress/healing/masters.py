"""Float32 master weights of a model that runs in a smaller type, with AdamW and fixed zeros.

A bfloat16 weight has eight bits of precision: a step smaller than 1/256 of the weight would be
rounded away. The masters take such steps, and the model gets their rounded values.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from evocompress.core.config import HealConfig
from evocompress.healing.optimizers import KEPT, from_moments, make_optimizer, moments, take_step


class Masters:
    """The copy of a model's trained parameters, by name; tied ones appear once."""

    def __init__(self, model: nn.Module, zeros: Mapping[str, Tensor], config: HealConfig) -> None:
        """Copies those parameters of the model that have gradients; steps update them in place.

        `zeros` says of some parameters, by name, where they stay zero (boolean).
        """
        self._parameters = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        self._zeros = zeros
        self._clip = config.clip
        self.weights = {
            name: parameter.detach().to(torch.float32, copy=True)
            for name, parameter in self._parameters.items()
        }
        self._optimizer = make_optimizer(list(self.weights.values()), config)

    def collect_gradients(self) -> None:
        """Adds the model's gradients to the masters' and clears them, once per micro-step."""
        for name, parameter in self._parameters.items():
            if parameter.grad is None:
                continue
            gradient = parameter.grad.to(torch.float32)
            if name in self._zeros:
                gradient.masked_fill_(self._zeros[name], 0.0)
            master = self.weights[name]
            master.grad = gradient if master.grad is None else master.grad.add_(gradient)
            parameter.grad = None

    def clip_gradients(self) -> float:
        """Shrinks the collected gradients to the largest norm; returns the norm before."""
        return float(nn.utils.clip_grad_norm_(self.weights.values(), self._clip))

    def step(self, learning_rate: float) -> None:
        """Updates masters and model from the collected gradients, and forgets these.

        A weight that stays zero has no gradient, hence no moments, and decays to zero.
        """
        take_step(self._optimizer, learning_rate)
        self._write_to_model()

    def state(self) -> dict[str, Tensor]:
        """Masters and moments by name, to continue from; not copies."""
        tensors = {f"master.{name}": master for name, master in self.weights.items()}
        for name, master in self.weights.items():
            for key, tensor in moments(self._optimizer.state[master]):
                tensors[f"{key}.{name}"] = tensor
        return tensors

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Continues from `state`, on whichever device its tensors are."""
        for name, master in self.weights.items():
            master.copy_(tensors[f"master.{name}"])
            known = {key: tensors[f"{key}.{name}"] for key in KEPT if f"{key}.{name}" in tensors}
            self._optimizer.state[master] = from_moments(known, master)
        self._write_to_model()

    @torch.no_grad()
    def _write_to_model(self) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(self.weights[name])

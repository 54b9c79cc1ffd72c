"""Float32 master weights of a model that runs in a smaller type, with AdamW and fixed zeros.

A bfloat16 weight has eight bits of precision: a step smaller than 1/256 of the weight would be
rounded away. The masters take such steps, and the model gets their rounded values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

import torch
from torch import Tensor, nn

from evocompress.compression.quantization.gptq import Rounded
from evocompress.core.config import HealConfig
from evocompress.core.processes import (
    anywhere,
    broadcast_from,
    gathered,
    of_all,
    owners,
    process_count,
    process_number,
    reduce_to,
)
from evocompress.healing.optimizers import KEPT, from_moments, make_optimizer, moments, take_step
from evocompress.healing.typed import Through


class Masters:
    """The copy of a model's trained parameters, by name; tied ones appear once.

    Several processes share it out: each has the masters, gradients and moments of some parameters,
    takes their steps and tells the others the new weights (ZeRO, stage 2: 1910.02054). A parameter
    that is trained through its rounding has several masters, see
    `evocompress.healing.rounded.RoundedWeight`.

    Attributes:
        weights: The masters of this process, by name.
    """

    def __init__(
        self,
        model: nn.Module,
        zeros: Mapping[str, Tensor],
        config: HealConfig,
        through: Through | None = None,
    ) -> None:
        """Copies those parameters of the model that have gradients; steps update them in place.

        `zeros` says of some parameters, by name, where they stay zero (boolean); `through` what is
        trained through its rounding.
        """
        self._parameters = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        self._through = through or Through()
        sizes = [parameter.numel() for parameter in self._parameters.values()]
        self._owners = dict(zip(self._parameters, owners(sizes, process_count()), strict=True))
        self._zeros = zeros
        self._clip = config.clip
        self._own = {
            name: self._through.masters(name, parameter)
            for name, parameter in self._parameters.items()
            if self._owners[name] == process_number()
        }
        self.weights = {key: one for each in self._own.values() for key, one in each.items()}
        self._summed: set[str] = set()
        self._optimizer = make_optimizer(list(self.weights.values()), config)

    def collect_gradients(self) -> None:
        """Adds the model's gradients to the masters' and clears them, once per micro-step.

        A parameter that no process has a gradient of, such as that of an expert without tokens,
        gets none.
        """
        known = [parameter.grad is not None for parameter in self._parameters.values()]
        for there, (name, parameter) in zip(anywhere(known), self._parameters.items(), strict=True):
            if not there:
                continue
            given = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            gradient = given.to(torch.float32)
            parameter.grad = None
            if name in self._zeros:
                gradient.masked_fill_(self._zeros[name], 0.0)
            for key, part in self._through.summed(name, gradient).items():
                part = reduce_to(self._owners[name], part)
                if (master := self.weights.get(key)) is not None:
                    master.grad = part if master.grad is None else master.grad.add_(part)
                    self._summed.add(name)

    def clip_gradients(self) -> float:
        """Shrinks the collected gradients to the largest norm; returns the norm before."""
        self._end_sums()
        every = [key for name in self._parameters for key in self._through.keys(name)]
        places = {key: place for place, key in enumerate(every)}
        own = {
            places[name]: torch.linalg.vector_norm(master.grad)
            for name, master in self.weights.items()
            if master.grad is not None
        }
        known = torch.stack(list(own.values())).tolist() if own else []
        norms = of_all(dict(zip(own, known, strict=True)), len(places))
        norm = torch.linalg.vector_norm(torch.tensor(norms))
        nn.utils.clip_grads_with_norm_(self.weights.values(), self._clip, norm)
        return float(norm)

    def step(self, learning_rate: float) -> None:
        """Updates masters and model from the collected gradients, and forgets these.

        A weight that stays zero has no gradient, hence no moments, and decays to zero.
        """
        self._end_sums()
        take_step(self._optimizer, learning_rate)
        self._write_to_model()

    def _end_sums(self) -> None:
        """Makes gradients of what was added up, once a step."""
        for name in self._summed:
            self._through.end_sums(name, self._own[name])
        self._summed.clear()

    def state(self) -> dict[str, Tensor]:
        """Masters and moments by name, to continue from; not copies.

        The first of several processes gets those of all, the others get none.
        """
        tensors = {f"master.{name}": master for name, master in self.weights.items()}
        for name, master in self.weights.items():
            for key, tensor in moments(self._optimizer.state[master]):
                tensors[f"{key}.{name}"] = tensor
        return gathered(tensors)

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Continues from `state`, on whichever device its tensors are."""
        for name, master in self.weights.items():
            master.copy_(tensors[f"master.{name}"])
            known = {key: tensors[f"{key}.{name}"] for key in KEPT if f"{key}.{name}" in tensors}
            self._optimizer.state[master] = from_moments(known, master)
        self._write_to_model()

    def rounded(self) -> dict[str, Rounded]:
        """How what is trained through its rounding is to be stored, by name.

        The first of several processes gets all, the others get nothing.
        """
        own = {
            f"{part.name}.{name}": getattr(made, part.name)
            for name in self._own
            if (made := self._through.rounded(name, self._own[name])) is not None
            for part in fields(made)
        }
        found = gathered(own)
        names = [name for name in self._parameters if f"codes.{name}" in found]
        return {
            name: Rounded(*(found[f"{part.name}.{name}"] for part in fields(Rounded)))
            for name in names
        }

    @torch.no_grad()
    def _write_to_model(self) -> None:
        for name, parameter in self._parameters.items():
            if name in self._own:
                parameter.copy_(self._through.value(name, self._own[name], parameter))
            broadcast_from(self._owners[name], parameter.data)

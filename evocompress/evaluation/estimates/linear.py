"""What every level of every unit does to the output distribution, to first and second order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from evocompress.core.arrays import Floats
from evocompress.evaluation.estimates.base import Rows, Subject
from evocompress.evaluation.estimates.changes import ParameterValues, Wide, dots, wide_form
from evocompress.evaluation.estimates.score import (
    distance,
    divergence,
    error,
    random_direction,
    sampled_score,
)
from evocompress.models.backward import (
    Loss,
    differentiable,
    read_gradients,
    short_of_memory,
)

Products = dict[str, Floats]
"""For each unit the inner products (losses, levels, sequences)."""


def curvature(subject: Subject) -> Rows:
    """⟨∇ log q(y), W_level - W_now⟩ per sequence, with y drawn from the model (Fisher information).

    Half the mean of the squares is the second-order term of the divergence, per position: exact
    for the dense model and small changes (see `evocompress.evaluation.estimates.score`). One
    backward pass a sequence for all units and levels.

    Returns:
        For every unit asked about, (levels, sequences) in that order, each divided by the root
        of the number of positions. 0 for the present level, and for what lies in dropped units.
        A dropped expert counts as if its output were zero, without a change of the routing.
    """
    products = _products(subject, [partial(_score, subject)])
    roots = np.sqrt(_positions(subject))
    return {name: _row(values[0] / roots) for name, values in products.items()}


def slope(subject: Subject) -> Rows:
    """⟨∇ KL(dense || candidate), W_level - W_now⟩ per sequence: one backward pass each.

    Returns:
        For every unit asked about, (levels, sequences) in that order, divided by the number of
        positions: the first-order term of the divergence per position.
    """
    _remember_dense(subject)
    products = _products(subject, [partial(_slope, subject)])
    positions = _positions(subject)
    return {name: _row(values[0] / positions) for name, values in products.items()}


def linearised(subject: Subject) -> Rows:
    """What `slope` and `curvature` give, of one forward and two backward passes a sequence.

    Returns:
        For every unit asked about, (2, levels, sequences) in that order, slopes first.
    """
    _remember_dense(subject)
    products = _products(subject, [partial(_slope, subject), partial(_score, subject)])
    positions = _positions(subject)
    scale = np.stack([positions, np.sqrt(positions)])[:, None, :]
    return {name: _row(values / scale) for name, values in products.items()}


def _score(subject: Subject, ids: Tensor) -> Loss:
    loaded = subject.live.loaded
    compared, config = loaded.family.task.compared, cast(Any, loaded.model.config)
    if compared != "logits":
        width = config.hidden_size if compared == "embeddings" else config.num_labels
        return random_direction(ids, subject.candidate, width)
    return sampled_score(ids, subject.candidate, _counted(subject, ids))


def _slope(subject: Subject, ids: Tensor) -> Loss:
    loaded = subject.live.loaded
    kinds = {"logits": divergence, "embeddings": distance, "scores": error}
    kind = kinds[loaded.family.task.compared]
    return kind(loaded, subject.dense_states[_key(ids)])


def _products(subject: Subject, kinds: Sequence[Callable[[Tensor], Loss]]) -> Products:
    """The inner products of the gradients of several kinds of loss with all levels' changes."""
    live = subject.live
    sequences = list(_sequences(subject))
    # Kept where the gradients are: reading each would wait for a GPU.
    found = {
        name: torch.zeros(
            (len(kinds), len(levels), len(sequences)),
            dtype=torch.float64,
            device=live.loaded.model.device,
        )
        for name, levels in subject.levels.items()
    }
    with wide_form(live, subject.candidate, subject.levels) as wide:
        watch = _Watch(wide, subject, found)
        parameters = {name: live.loaded.model.get_parameter(name) for name in watch.parameters}
        longest = max(sequences, key=live.loaded.length)
        with differentiable(parameters):
            by_block = short_of_memory(live.loaded, longest)
            for index, ids in enumerate(sequences):
                losses = [kind(ids) for kind in kinds]
                readers = [partial(watch.read, (kind, index)) for kind in range(len(kinds))]
                read_gradients(live.loaded, ids, losses, readers, by_block=by_block)
    return {name: products.cpu().numpy() for name, products in found.items()}


class _Watch:
    """Adds up the inner products of gradients with the values of every level.

    Attributes:
        parameters: {parameter: the units whose levels change it}.
    """

    def __init__(self, wide: Wide, subject: Subject, sums: Mapping[str, Tensor]) -> None:
        """Looks up the values: nothing is computed, and what is mapped is not read yet."""
        self._sums = sums
        self._present: dict[str, ParameterValues] = {}
        self._values: dict[str, list[ParameterValues]] = {}
        self.parameters: defaultdict[str, list[str]] = defaultdict(list)
        for name, levels in subject.levels.items():
            unit = subject.live.units[name]
            if wide.dropped(unit):
                continue
            self._present[name] = wide.values(unit, wide.current(name))
            self._values[name] = [wide.values(unit, level) for level in levels]
            for parameter in {key for values in self._values[name] for key in values}:
                self.parameters[parameter].append(name)

    def read(self, place: tuple[int, int], parameter: str, gradient: Tensor) -> None:
        """Takes a parameter's gradient of a (loss, sequence)."""
        whole, (kind, sequence) = gradient.float(), place
        for unit in self.parameters[parameter]:
            present = self._present[unit].get(parameter)
            values = [level.get(parameter) for level in self._values[unit]]
            sums = self._sums[unit][kind, :, sequence]
            if present is not None:
                sums -= present.dot(whole)
            there = {place: value for place, value in enumerate(values) if value is not None}
            products = dots(list(there.values()), whole)
            if len(there) == len(values):
                sums += products
            else:
                sums[list(there)] += products


@torch.no_grad()
def _remember_dense(subject: Subject) -> None:
    """Has the dense model's final hidden states of every sequence."""
    live = subject.live
    missing = [ids for ids in _sequences(subject) if _key(ids) not in subject.dense_states]
    if missing:
        live.restore()
    for ids in missing:
        states = live.loaded.family.hidden_states(live.loaded.model, ids)
        subject.dense_states[_key(ids)] = live.loaded.family.task.states(states).clone()


def _sequences(subject: Subject) -> Iterator[Tensor]:
    """Every sequence (1, S): one backward pass each keeps their squares apart."""
    for ids in subject.micro_batches:
        yield from torch.split(ids, 1)


def _positions(subject: Subject) -> Floats:
    counts = [_counted(subject, ids) for ids in _sequences(subject)]
    return np.array(counts, dtype=np.float64)


def _counted(subject: Subject, ids: Tensor) -> int:
    """Outputs of a sequence (1, ...)."""
    loaded = subject.live.loaded
    return loaded.family.task.counted(loaded.length(ids))


def _key(ids: Tensor) -> bytes:
    return ids.cpu().numpy().tobytes()


def _row(values: Floats) -> tuple[float, ...]:
    return tuple(values.ravel().tolist())

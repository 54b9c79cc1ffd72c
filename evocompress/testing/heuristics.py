"""Brute-force values of the estimates that allocation heuristics need, in float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil, log, log10

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from evocompress.evaluation.estimates.base import Rows
from evocompress.evaluation.estimates.perturbation import noise
from evocompress.models.families import Family
from evocompress.models.families.base import matrices_of

Batches = Sequence[Tensor]
"""Token ids (b, S) of each micro-batch."""


def reference_magnitude(family: Family, model: PreTrainedModel, micro_batches: Batches) -> Rows:
    """The k-th smallest magnitude for k = 1/256, 2/256, ... of the weights, rounded up."""
    return {name: _quantiles(weight.abs().flatten()) for name, weight in _weights(family, model)}


def reference_lamp(family: Family, model: PreTrainedModel, micro_batches: Batches) -> Rows:
    """LAMP's scores of such weights, each with its sum over all that are not smaller."""
    rows: Rows = {}
    for name, weight in _weights(family, model):
        squares = weight.flatten() ** 2
        rows[name] = tuple(
            one / float(squares[squares >= one].sum()) for one in _quantiles(squares)
        )
    return rows


def reference_outliers(family: Family, model: PreTrainedModel, micro_batches: Batches) -> Rows:
    """Percentages of |weight| * norm of its input above multiples of the mean, by block."""
    pooled: dict[str, list[Tensor]] = {}
    for name, module, weight in _modules(family, model):
        seen: list[Tensor] = []
        handle = module.register_forward_pre_hook(
            lambda _, inputs, seen=seen: seen.append(inputs[0].flatten(0, -2))
        )
        for ids in micro_batches:
            family.hidden_states(model, ids)
        handle.remove()
        block = ".".join(name.split(".")[: family.layers_path.count(".") + 2])
        scores = weight.abs() * torch.cat(seen).norm(dim=0)
        pooled.setdefault(block, []).append(scores.flatten())
    rows: Rows = {}
    for block, parts in pooled.items():
        scores = torch.cat(parts)
        above = (scores > multiple * scores.mean() for multiple in range(1, 11))
        rows[block] = tuple(100 * float(outlying.double().mean()) for outlying in above)
    return rows


def reference_exponent(family: Family, model: PreTrainedModel, micro_batches: Batches) -> Rows:
    """Hill's exponent of the tail that fits best around the peak, value by value."""
    rows: Rows = {}
    for name, weight in _weights(family, model):
        spectrum = sorted(value**2 for value in torch.linalg.svdvals(weight).tolist())
        spectrum = [value for value in spectrum if value > 1e-12 * spectrum[-1]]
        peak = _peak(spectrum)
        tails = [
            spectrum[begin:]
            for begin, value in enumerate(spectrum[:-1])
            if 0.95 * peak <= value <= 1.5 * peak
        ]
        above = [begin for begin, value in enumerate(spectrum[:-2]) if value >= 0.95 * peak]
        fits = [_fit(tail) for tail in tails or [spectrum[above[0] if above else -2 :]]]
        rows[name] = (min(fits)[1],)
    return rows


def reference_index(family: Family, model: PreTrainedModel, micro_batches: Batches) -> Rows:
    """1 - d^(1/q - 1/p) times the ratio of the norms for p = 1/2, q = 1."""
    rows: Rows = {}
    for name, weight in _weights(family, model):
        left = weight[weight != 0]
        ratio = torch.linalg.vector_norm(left, 0.5) / torch.linalg.vector_norm(left, 1)
        rows[name] = (1 - len(left) ** (1 / 1 - 1 / 0.5) * float(ratio),)
    return rows


def reference_perturbation(family: Family, model: PreTrainedModel, micro_batches: Batches) -> Rows:
    """Central differences of the mean loss, from whole forward passes of the model."""
    rows: Rows = {}
    for name, module, _ in _modules(family, model):
        weight, total = module.get_parameter("weight"), 0.0
        dense = weight.data.clone()
        for index, ids in enumerate(micro_batches):
            losses = []
            for step in (1e-3, -1e-3):
                weight.data = dense + step * noise(name, index, weight.shape)
                logits = model(ids).logits[:, :-1].flatten(0, 1)
                losses.append(float(F.cross_entropy(logits, ids[:, 1:].flatten())))
            total += abs(losses[0] - losses[1]) / 2e-3
        weight.data = dense
        rows[name] = (total,)
    return rows


def reference_errors(family: Family, model: PreTrainedModel, micro_batches: Batches) -> Rows:
    """Of a dense and a dropped sub-layer: nothing and all of its output."""
    return {unit.name: (0.0, 1.0) for unit in family.units(model) if unit.kind in _SUBLAYERS}


_SUBLAYERS = ("attention", "mlp")


def _modules(family: Family, model: PreTrainedModel) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Every matrix: its name, its module and its weight (out, in)."""
    for index, block in enumerate(family.blocks(model)):
        for matrix in matrices_of(family):
            module = block.get_submodule(matrix.path)
            weight = module.get_parameter("weight").detach()
            name = f"{family.layers_path}.{index}.{matrix.path}"
            yield name, module, weight.T if matrix.transposed else weight


def _weights(family: Family, model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    return ((name, weight) for name, _, weight in _modules(family, model))


def _quantiles(scores: Tensor) -> tuple[float, ...]:
    ordered = sorted(scores.tolist())
    return tuple(ordered[ceil(part * len(ordered) / 256) - 1] for part in range(1, 257))


def _peak(spectrum: Sequence[float]) -> float:
    """The lower end of the fullest of 100 bins of the logarithms, the lowest of several."""
    logs = [log10(value) for value in spectrum]
    width = (logs[-1] - logs[0]) / 100
    bins = [min(int((value - logs[0]) / width), 99) for value in logs]
    fullest = max(sorted(set(bins)), key=bins.count)
    return float(10 ** (logs[0] + fullest * width))


def _fit(tail: Sequence[float]) -> tuple[float, float]:
    """Distance from the power law, and its exponent."""
    exponent = 1 + len(tail) / sum(log(value / tail[0]) for value in tail)
    distances = [
        abs(1 - (value / tail[0]) ** (1 - exponent) - place / len(tail))
        for place, value in enumerate(tail)
    ]
    return max(distances), exponent

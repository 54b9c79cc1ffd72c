"""Weights that are trained through their rounding, against autograd and steps by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from evocompress.compression.quantization.gptq import Rounded, RoundingTask, round_to_nearest
from evocompress.compression.quantization.quantized import scale_type
from evocompress.core.config import HealConfig
from evocompress.core.storage import STORAGE, StorageType
from evocompress.core.types import Level
from evocompress.healing.masters import Masters
from evocompress.healing.rounded import RoundedWeight
from evocompress.healing.typed import Through, TypedParameters

ROWS, COLUMNS = 6, 128
KINDS = [kind for kind in STORAGE.values() if kind.uniform]
RATE = 0.01


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def first_of(kind: StorageType) -> Rounded:
    return round_to_nearest(
        RoundingTask(drawn(0, ROWS, COLUMNS), kind), scale_type(kind, torch.float32)
    )


def blocks(values: Tensor, kind: StorageType) -> Tensor:
    return values.view(ROWS, -1, kind.block or COLUMNS)


def by_autograd(
    kind: StorageType, first: Rounded, gradient: Tensor, *, weights: bool, scales: bool
) -> tuple[dict[str, Tensor], Tensor]:
    """The gradients, where every rounding is a number that is added; and the weight."""
    half, low = 2 ** (kind.bits - 1), 1 if kind.name == "q8_0" else 0
    weight = (first.weight + 0.3 * drawn(1, ROWS, COLUMNS) * weights).requires_grad_()
    ranges = (first.scales * half * 1.01).requires_grad_()
    minima = (first.minima * 1.01).requires_grad_()

    def halves(values: Tensor) -> Tensor:
        return values + (values.half().float() - values).detach()

    scale, minimum = halves(ranges / half), halves(minima)
    if not scales:
        scale, minimum = first.scales, first.minima
    elif kind.ranges != "affine":
        minimum = scale * (first.minima / first.scales).round()
    scale, minimum = scale[..., None], minimum[..., None]
    codes = blocks(first.codes.float(), kind)
    if weights:
        places = ((blocks(weight, kind) - minimum) / scale).clamp(low, 2**kind.bits - 1)
        codes = places + (places.round() - places).detach()
    value = (codes * scale + minimum).flatten(1)
    (value * gradient).sum().backward()
    every = {"weight": weight, "range": ranges, "minimum": minima}
    found = {name: one.grad for name, one in every.items() if one.grad is not None}
    return {name: one for name, one in found.items() if one is not None}, value.detach()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize(("weights", "scales"), [(False, True), (True, False), (True, True)])
def test_gradients_and_values_are_those_of_autograd(
    kind: StorageType, weights: bool, scales: bool
) -> None:
    first, gradient = first_of(kind), drawn(2, ROWS, COLUMNS)
    one = RoundedWeight(
        first, kind, scale_type(kind, torch.float32), weights=weights, scales=scales
    )
    masters = one.masters()
    if weights:
        masters["weight"] += 0.3 * drawn(1, ROWS, COLUMNS)
    for name in masters.keys() - {"weight"}:
        masters[name] *= 1.01
    expected, value = by_autograd(kind, first, gradient, weights=weights, scales=scales)
    found = one.gradients(one.summed(gradient.clone()), masters)
    assert found.keys() == masters.keys() == expected.keys()
    for name, own in found.items():
        torch.testing.assert_close(own, expected[name], rtol=1e-4, atol=1e-4)
    rounded = one.rounded(masters)
    torch.testing.assert_close(rounded.weight, value, rtol=1e-5, atol=1e-5)
    assert torch.equal(rounded.scales, rounded.scales.half().float())
    assert int(rounded.codes.max()) < 2**kind.bits


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_nothing_moves_before_the_first_step(kind: StorageType) -> None:
    first = first_of(kind)
    one = RoundedWeight(first, kind, torch.float16, weights=True, scales=True)
    made = one.rounded(one.masters())
    assert torch.equal(made.weight, first.weight)
    assert torch.equal(made.codes, first.codes)


def layer(kind: StorageType, *, weights: bool, scales: bool) -> tuple[nn.Linear, Masters]:
    """A linear layer of a type, and its masters."""
    model = nn.Linear(COLUMNS, ROWS, bias=False)
    first = first_of(kind)
    model.weight.data = first.weight
    typed = TypedParameters(Path(), torch.float32, {"weight": Level(bits=kind.name)})
    one = RoundedWeight(first, kind, torch.float16, weights=weights, scales=scales)
    return model, Masters(model, {}, HealConfig(), Through(typed, {"weight": one}))


@pytest.mark.parametrize("kind", [STORAGE["q4_0"], STORAGE["q5_1"], STORAGE["w3g64z"]])
def test_a_step_of_scales_by_hand(kind: StorageType) -> None:
    """Adam's first step moves everything by the rate, against the sign of its gradient."""
    model, masters = layer(kind, weights=False, scales=True)
    first, gradient = first_of(kind), drawn(3, ROWS, COLUMNS)
    for part in (0.25, 0.75):  # two micro-steps
        model.weight.grad = gradient * part
        masters.collect_gradients()
    masters.step(RATE)
    codes = first.codes.double().numpy().reshape(ROWS, -1, kind.block)
    scales, minima = first.scales.double().numpy(), first.minima.double().numpy()
    zeros = np.zeros_like(minima) if kind.ranges == "affine" else np.round(-minima / scales)
    each = gradient.double().numpy().reshape(codes.shape)
    half = 2 ** (kind.bits - 1)
    of_range = (each * (codes - zeros[..., None])).sum(2)
    scales = np.float16(scales - RATE * np.sign(of_range) / half).astype(float)
    minima = np.float16(minima - RATE * np.sign(each.sum(2))).astype(float)
    if kind.ranges != "affine":
        minima = -scales * zeros
    expected = codes * scales[..., None] + minima[..., None]
    found = model.weight.detach().numpy().reshape(codes.shape)
    assert np.array_equal(found, expected.astype(np.float32))
    assert torch.equal(masters.rounded()["weight"].codes, first.codes)


def test_a_step_of_weights_by_hand() -> None:
    """A weight goes to the next value once its master is past the middle, and not before."""
    kind = STORAGE["w3g64"]
    model, masters = layer(kind, weights=True, scales=False)
    first, before = first_of(kind), model.weight.detach().clone()
    steps = 0
    while torch.equal(model.weight, before):
        model.weight.grad = -torch.ones(ROWS, COLUMNS)
        masters.collect_gradients()
        masters.step(RATE)
        steps += 1
    least = float(first.scales.min())
    assert steps == int(np.ceil(least / 2 / RATE))
    scales = first.scales.repeat_interleave(64, 1)
    up = first.codes + ((scales < 2 * steps * RATE) & (first.codes < 7))
    assert torch.equal(model.weight, up * scales + first.minima.repeat_interleave(64, 1))


def test_weights_beyond_the_end_of_their_grid_get_no_gradient() -> None:
    kind = STORAGE["w2g64"]
    model, masters = layer(kind, weights=True, scales=False)
    top = first_of(kind).codes == 3
    model.weight.grad = -torch.ones(ROWS, COLUMNS)
    masters.collect_gradients()
    masters.step(RATE)
    model.weight.grad = -torch.ones(ROWS, COLUMNS)
    masters.collect_gradients()
    masters.clip_gradients()
    gradient = masters.weights["weight.weight"].grad
    assert gradient is not None and not gradient[top].any() and gradient[~top].all()
    assert (masters.rounded()["weight"].codes[top] == 3).all()

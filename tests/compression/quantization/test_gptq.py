"""GPTQ's sweep over all types against a plain float64 version, one matrix and type at a time."""

import pytest
import torch

from evocompress.compression.criteria import Statistics
from evocompress.compression.criteria.base import relative_errors
from evocompress.compression.quantization.gptq import RoundingTask, gptq, round_to_nearest
from evocompress.compression.quantization.rounding import COMPILED, PLAIN
from evocompress.core.errors import LibraryError
from evocompress.core.storage import STORAGE

NAMES = [
    "w2g32",
    "w3g64z",
    "w4g128",
    "w4g32z",
    "w8g64z",
    "q4_0",
    "q4_1",
    "q5_0",
    "q5_1",
    "q8_0",
    "w8a8",
]
ROUNDINGS = {"compiled": COMPILED, "plain": PLAIN}


def example(rows=133, columns=384, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(900, columns, generator=generator)
    inputs += 0.7 * inputs.roll(1, 1) + 0.3 * inputs.roll(5, 1)
    weight = torch.randn(rows, columns, generator=generator)
    return weight, Statistics(gram=inputs.T @ inputs, sequences=3, tokens=900)


def grid_of(block, name):
    """Scale, minimum, code of zero and bounds of a row's block (columns,), in float64."""
    kind = STORAGE[name]
    low, high = 0, 2**kind.bits - 1

    def stored(value):
        return float(torch.tensor(value, dtype=torch.float32).half())

    least, most = float(block.min()), float(block.max())
    if kind.ranges == "affine":
        return stored((most - least) / high), stored(least), None, low, high
    if kind.ranges == "zero point":
        scale = stored((max(most, 0) - min(least, 0)) / high)
        zero = min(max(round(-min(least, 0) / scale), 0), high)
        return scale, -scale * zero, zero, low, high
    middle = 2 ** (kind.bits - 1)
    size = max(most, -least)
    if name == "q8_0":
        scale, low = stored(size / 127), 1
    elif kind.lane == "gguf":
        scale = stored((most if most >= -least else least) / -middle)
    else:
        scale = stored(size / (high / 2))
    return scale, -scale * middle, middle, low, high


def reference(weight, statistics, name, mask=None):
    """Row by row and column by column; every error goes to all later columns at once."""
    factor = statistics.factor.upper.double()
    work, block = weight.double().clone(), STORAGE[name].block or weight.shape[1]
    for row in range(len(work)):
        for j in range(work.shape[1]):
            if j % block == 0:
                scale, minimum, zero, low, high = grid_of(work[row, j : j + block], name)
            code = min(max(round(float(work[row, j] - minimum) / scale), low), high)
            if mask is not None and mask[row, j]:
                code = zero
            error = (work[row, j] - (minimum + scale * code)) / factor[j, j]
            work[row, j] = minimum + scale * code
            work[row, j + 1 :] -= error * factor[j, j + 1 :]
    return work


@pytest.mark.parametrize("rounding", ROUNDINGS.values(), ids=ROUNDINGS)
def test_all_types_in_one_sweep_are_as_the_reference(rounding):
    weight, statistics = example(rows=5)
    other = weight.flip(0) * 0.3
    tasks = [RoundingTask(each, STORAGE[name]) for name in NAMES for each in (weight, other)]
    for task, found in zip(
        tasks, gptq(tasks, statistics.factor, torch.float16, rounding), strict=True
    ):
        expected = reference(task.weight, statistics, task.kind.name)
        # A weight in the middle between two values may go to either, and what follows with it.
        same = (found.weight - expected).abs().amax(1) < 1e-5
        assert same.float().mean() >= 0.8, task.kind.name
        error, known = relative_errors(
            task.weight, [found.weight, expected.float()], statistics.gram
        )
        assert error == pytest.approx(known, rel=0.02)


@pytest.mark.parametrize("columns", [96, 200, 300])
@pytest.mark.parametrize("rounding", ROUNDINGS.values(), ids=ROUNDINGS)
def test_rows_of_any_length_have_one_scale(rounding, columns):
    weight, statistics = example(rows=7, columns=columns)
    task = RoundingTask(weight, STORAGE["w8a8"])
    (found,) = gptq([task], statistics.factor, torch.float16, rounding)
    largest = weight.double().abs().amax(1, keepdim=True)
    torch.testing.assert_close(found.scales.double(), largest / 127.5, rtol=1e-3, atol=0)
    expected = reference(weight, statistics, "w8a8")
    same = (found.weight - expected).abs().amax(1) < 1e-5
    assert same.float().mean() >= 0.8


def test_it_is_better_than_the_nearest_values():
    weight, statistics = example()
    for name in NAMES:
        task = RoundingTask(weight, STORAGE[name])
        (found,) = gptq([task], statistics.factor, torch.float16)
        plain = round_to_nearest(task, torch.float16)
        with_it, without = relative_errors(weight, [found.weight, plain.weight], statistics.gram)
        assert with_it < 0.8 * without, name


def test_compiled_and_plain_rounding_agree():
    weight, statistics = example(seed=4)
    tasks = [RoundingTask(weight, STORAGE[name]) for name in NAMES]
    both = [gptq(tasks, statistics.factor, torch.float16, one) for one in ROUNDINGS.values()]
    for one, other in zip(*both, strict=True):
        assert (one.codes == other.codes).float().mean() > 0.995


@pytest.mark.parametrize("name", [n for n in NAMES if STORAGE[n].has_zero])
def test_zeros_stay_exactly_zero_and_their_error_goes_on(name):
    weight, statistics = example(rows=4, seed=2)
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    sparse = weight.masked_fill(mask, 0)
    task = RoundingTask(sparse, STORAGE[name], mask)
    (found,) = gptq([task], statistics.factor, torch.float16)
    assert not found.weight[mask].any()
    assert not round_to_nearest(task, torch.float16).weight[mask].any()
    expected = reference(sparse, statistics, name, mask)
    error, known = relative_errors(sparse, [found.weight, expected.float()], statistics.gram)
    assert error == pytest.approx(known, rel=0.02)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_number_of_threads_changes_nothing_but_rounding(threads):
    weight, statistics = example(rows=300)
    tasks = [RoundingTask(weight, STORAGE[name]) for name in NAMES]
    expected = gptq(tasks, statistics.factor, torch.float16, PLAIN)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = gptq(tasks, statistics.factor, torch.float16)
    finally:
        torch.set_num_threads(before)
    for one, other in zip(found, expected, strict=True):
        assert (one.codes == other.codes).float().mean() > 0.995


def test_constant_and_empty_blocks_are_kept():
    weight = torch.zeros(3, 64)
    weight[1] = 0.25
    statistics = Statistics(gram=torch.eye(64), sequences=1, tokens=1)
    for name in ("q4_0", "q4_1", "w4g32", "w4g32z", "q8_0"):
        (found,) = gptq([RoundingTask(weight, STORAGE[name])], statistics.factor, torch.float16)
        torch.testing.assert_close(found.weight, weight, rtol=0.07, atol=0)


def test_weights_beyond_the_range_of_scales_are_refused():
    weight, statistics = example(rows=3)
    for broken in (weight * 1e8, weight.masked_fill(weight > 2, float("nan"))):
        for name in NAMES:
            with pytest.raises(LibraryError, match="too large, or not finite, for scales"):
                gptq([RoundingTask(broken, STORAGE[name])], statistics.factor, torch.float16)

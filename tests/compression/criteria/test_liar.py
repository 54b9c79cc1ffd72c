"""Reconstruction against np.linalg.lstsq, in float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from evocompress.compression.criteria import STRUCTURED, Statistics, reconstructed
from evocompress.testing.structured import SHAPES, structured_example


def narrow(name, shape, seed=0):
    """An example and its narrow cuts."""
    example = structured_example(SHAPES[shape], seed)
    return example, example.cut(STRUCTURED[name], SHAPES[shape].widths[1:])


def fit(example, cut, affine):
    """Weights and intercept of a ridge regression whose penalty is on the change of weights."""
    structure, rows = example.structure, example.inputs.flatten(0, 1).double().numpy()
    kept = structure.columns(cut.items).numpy()
    lost = np.setdiff1d(np.arange(rows.shape[1]), kept)
    weight = structure.output.double().numpy()
    spread = rows - rows.mean(0) if affine else rows
    ridge = 0.01 * np.square(spread).sum(0).mean()
    ones = np.ones((len(rows), 1)) * affine
    design = np.block(
        [[rows[:, kept], ones], [ridge**0.5 * np.eye(len(kept)), np.zeros((len(kept), 1))]]
    )
    wanted = np.vstack([rows[:, lost] @ weight[:, lost].T, np.zeros((len(kept), len(weight)))])
    change = np.linalg.lstsq(design, wanted)[0].T
    return weight[:, kept] + change[:, :-1], change[:, -1]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_fit_is_that_of_least_squares(shape):
    example, cuts = narrow("wanda", shape)
    known = replace(example.statistics, sums=None)
    for before, after in zip(cuts, reconstructed(example.structure, known, cuts), strict=True):
        expected, _ = fit(example, before, affine=False)
        np.testing.assert_allclose(after.weight, expected, rtol=1e-3, atol=1e-4)
        assert after.bias is before.bias
        assert torch.equal(after.items, before.items)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("flap", "mlp"), ("flap", "gqa"), ("flap", "mlp with bias"), ("wanda", "gqa with bias")],
)
def test_a_bias_is_fitted_with_the_weights(name, shape):
    example, cuts = narrow(name, shape)
    own = 0.0 if example.structure.bias is None else example.structure.bias.numpy()
    results = reconstructed(example.structure, example.statistics, cuts)
    for before, after in zip(cuts, results, strict=True):
        weight, intercept = fit(example, before, affine=True)
        np.testing.assert_allclose(after.weight, weight, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(after.bias, intercept + own, rtol=1e-3, atol=2e-3)


def missed(example, cut):
    """Squared error of a cut's outputs."""
    structure, rows = example.structure, example.inputs.flatten(0, 1).double()
    dense = rows @ structure.output.double().T
    found = rows[:, structure.columns(cut.items)] @ cut.weight.double().T
    if cut.bias is not None:
        found = found + cut.bias - (0 if structure.bias is None else structure.bias)
    return float((dense - found).square().sum())


@pytest.mark.parametrize("shape", ["mlp", "gqa", "gqa with bias"])
@pytest.mark.parametrize("name", sorted({*STRUCTURED.built_in} - {"obs_structured"}))
def test_outputs_are_nearer_after_any_criterion(name, shape):
    example, cuts = narrow(name, shape)
    results = reconstructed(example.structure, example.statistics, cuts)
    for before, after in zip(cuts, results, strict=True):
        assert missed(example, after) < missed(example, before)


@pytest.mark.parametrize("shape", ["mlp", "gqa"])
def test_structured_obs_is_there_already(shape):
    example, cuts = narrow("obs_structured", shape)
    for before, after in zip(
        cuts, reconstructed(example.structure, example.statistics, cuts), strict=True
    ):
        torch.testing.assert_close(after.weight, before.weight, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", ["mlp with bias", "gqa with bias"])
def test_with_a_bias_there_is_something_to_gain_after_structured_obs(shape):
    example, cuts = narrow("obs_structured", shape)
    results = reconstructed(example.structure, example.statistics, cuts)
    for before, after in zip(cuts, results, strict=True):
        assert torch.equal(before.bias, example.structure.bias)
        assert not torch.allclose(after.bias, before.bias, rtol=1e-2)
        assert missed(example, after) < missed(example, before)


def test_the_full_width_is_given_back():
    example = structured_example(SHAPES["mlp with bias"])
    cuts = example.cut(STRUCTURED["flap"], [(1, 40), (1, 20)])
    results = reconstructed(example.structure, example.statistics, cuts)
    assert results[0] is cuts[0] and results[1] is not cuts[1]


def test_inputs_that_are_always_zero_change_nothing():
    example = structured_example(SHAPES["mlp"])
    example.inputs[..., 5:] = 0
    cuts = example.cut(STRUCTURED["magnitude"], [(1, 30)])
    kept = set(cuts[0].items.tolist())
    (after,) = reconstructed(example.structure, example.statistics, cuts)
    silent = [place for place, item in enumerate(sorted(kept)) if item >= 5]
    assert bool(after.weight.isfinite().all())
    torch.testing.assert_close(after.weight[:, silent], cuts[0].weight[:, silent])


def test_a_gram_matrix_is_needed():
    example, cuts = narrow("magnitude", "mlp")
    with pytest.raises(ValueError, match="Gram"):
        reconstructed(example.structure, Statistics(sequences=1), cuts)

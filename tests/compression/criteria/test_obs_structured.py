"""Structured OBS against least squares solved anew for every possible removal, in float64."""

import numpy as np
import pytest
import torch

from evocompress.compression.criteria import STRUCTURED, Statistics, obs_structured
from evocompress.compression.criteria.base import output_energy
from evocompress.compression.criteria.structure import Structure
from evocompress.core.errors import LibraryError
from evocompress.testing.structured import SHAPES, Shape, silenced, structured_example

OBS = STRUCTURED["obs_structured"]


def damped_hessian(inputs):
    rows = inputs.flatten(0, 1).double()
    hessian = 2 / len(inputs) * rows.T @ rows
    dead = hessian.diagonal() == 0
    hessian[dead, dead] = 1
    return hessian + 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian)).double(), dead


class Exhaustive:
    """The definition itself: what goes is what the best refit of the rest misses least."""

    def __init__(self, structure, inputs):
        hessian, dead = damped_hessian(inputs)
        self.root = torch.linalg.cholesky(hessian).T.numpy()
        self.weight = structure.output.double().masked_fill(dead, 0).numpy()
        self.size, self.per_group = structure.size, structure.full[1]
        self.items = list(range(structure.items))

    def fit(self, items):
        """Weights of the columns of items, and the squared error, by np.linalg.lstsq."""
        columns = [i * self.size + k for i in items for k in range(self.size)]
        wanted = self.root @ self.weight.T
        fitted = np.linalg.lstsq(self.root[:, columns], wanted)[0]
        return fitted.T, np.square(wanted - self.root[:, columns] @ fitted).sum()

    def remove(self, choices):
        """Remove the best of the choices, each a list of items; returns which."""
        rests = [[i for i in self.items if i not in choice] for choice in choices]
        best = int(np.argmin([self.fit(rest)[1] for rest in rests]))
        self.items = rests[best]
        return best

    def to(self, width):
        while len({i // self.per_group for i in self.items}) > width[0]:
            groups = sorted({i // self.per_group for i in self.items})
            self.remove([[i for i in self.items if i // self.per_group == g] for g in groups])
        while len(self.items) > width[0] * width[1]:
            waiting = {i // self.per_group for i in self.items}
            while waiting:
                choices = [i for i in self.items if i // self.per_group in waiting]
                waiting.remove(choices[self.remove([[i] for i in choices])] // self.per_group)


def check_against_exhaustive(example, shape, widths):
    for width, cut in zip(widths, example.cut(OBS, widths), strict=True):
        reference = Exhaustive(example.structure, example.inputs)
        reference.to(width)
        assert cut.items.tolist() == reference.items, width
        expected = torch.from_numpy(reference.fit(reference.items)[0]).float()
        torch.testing.assert_close(cut.weight, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("shape", ["gqa", "gqa with bias", "mha", "mqa"])
def test_heads_go_as_in_the_definition(shape, seed):
    example = structured_example(SHAPES[shape], seed)
    check_against_exhaustive(example, SHAPES[shape], SHAPES[shape].widths[1:])


@pytest.mark.parametrize("block", [1, 7, 256])
def test_channels_go_as_in_the_definition(monkeypatch, block):
    monkeypatch.setattr(obs_structured, "BLOCK", block)
    shape = Shape(1, 26, 1)
    example = structured_example(shape, seed=2)
    check_against_exhaustive(example, shape, [(1, 20), (1, 4), (1, 13), (1, 1)])


def test_heads_with_dead_inputs_go_as_in_the_definition():
    example = structured_example(SHAPES["gqa"], seed=3)
    example.inputs[..., [1, 9, 25, 26]] = 0
    widths = SHAPES["gqa"].widths[1:]
    for width, cut in zip(widths, example.cut(OBS, widths), strict=True):
        reference = Exhaustive(example.structure, example.inputs)
        reference.to(width)
        assert cut.items.tolist() == reference.items, width


def plain(weight, hessian, counts):
    """ZipLM's loop for single columns: one rank-one update of everything after each removal."""
    work, inverse = weight.double().clone(), torch.linalg.inv(hessian)
    left = list(range(weight.shape[1]))
    results = {}
    while len(left) > min(counts):
        scores = work[:, left].square().sum(0) / inverse.diagonal()[left]
        gone = left.pop(int(scores.argmin()))
        update = inverse[gone] / inverse[gone, gone]
        work -= work[:, [gone]] * update
        inverse = inverse - torch.outer(inverse[gone], update)
        results[len(left)] = list(left), work[:, left].clone()
    return [results[count] for count in counts]


@pytest.mark.parametrize("tokens", [1500, 200], ids=["well posed", "fewer tokens than channels"])
def test_many_blocks_of_channels_equal_the_plain_loop(tokens):
    generator = torch.Generator().manual_seed(5)
    channels, counts = 600, [590, 300, 60]
    scales = torch.randn(channels, generator=generator).mul(1.5).exp()
    mixing = torch.randn(channels, channels, generator=generator) / channels**0.5
    inputs = torch.randn(2, tokens // 2, channels, generator=generator)
    inputs = (inputs + inputs @ mixing) * scales
    weight = torch.randn(16, channels, generator=generator)
    rows = inputs.flatten(0, 1)
    statistics = Statistics(rows.T @ rows, sequences=2, tokens=tokens)
    cuts = OBS.cut(Structure(weight, 1, 1), statistics, [(1, count) for count in counts])
    expected = plain(weight, damped_hessian(inputs)[0], counts)
    for cut, (items, updated) in zip(cuts, expected, strict=True):
        assert cut.items.tolist() == items
        assert float((cut.weight - updated).norm() / updated.norm()) < 1e-3


def test_the_inverse_hessian_is_put_together_from_blocks():
    inputs = torch.randn(2, 400, 600, generator=torch.Generator().manual_seed(6))
    rows = inputs.flatten(0, 1)
    factor = Statistics(rows.T @ rows, sequences=2, tokens=800).factor
    expected = torch.linalg.inv(damped_hessian(inputs)[0]).float()
    torch.testing.assert_close(factor.inverse, expected, rtol=1e-3, atol=1e-6)


def test_the_update_beats_the_same_cut_without_it():
    example = structured_example(SHAPES["mlp"])
    structure, gram = example.structure, example.statistics.gram
    (cut,) = example.cut(OBS, [(1, 20)])
    kept, zeros = structure.columns(cut.items), torch.zeros_like(structure.output)
    updated = zeros.index_copy(1, kept, cut.weight)
    plain_cut = zeros.index_copy(1, kept, structure.output[:, kept])
    with_update = output_energy(structure.output - updated, gram)
    assert with_update < 0.7 * output_energy(structure.output - plain_cut, gram)


def test_dead_channels_go_first_and_keep_their_weights_while_they_stay():
    dead = [3, 17, 18, 30]
    example = structured_example(SHAPES["mlp"])
    example.inputs[..., dead] = 0
    few, all_of_them = example.cut(OBS, [(1, 38), (1, 36)])
    assert not set(dead) & set(all_of_them.items.tolist())
    assert len(set(dead) & set(few.items.tolist())) == 2
    torch.testing.assert_close(few.weight, example.structure.output[:, few.items])


def test_all_dead_but_one():
    example = silenced(structured_example(SHAPES["mlp"]), range(1, 40))
    (cut,) = example.cut(OBS, [(1, 1)])
    assert cut.items.tolist() == [0]
    assert torch.equal(cut.weight, example.structure.output[:, :1])


def test_a_hessian_lost_to_rounding_is_refused():
    state = obs_structured._State(
        torch.arange(2), torch.ones(1, 2), torch.diag(torch.tensor([1.0, -1.0])), torch.ones(2, 2)
    )
    with pytest.raises(LibraryError, match=r"raise library\.damping"):
        state.without(torch.tensor([1]))

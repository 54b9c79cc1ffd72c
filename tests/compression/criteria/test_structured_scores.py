"""Criteria that only score, against loops over items in float64."""

import pytest
import torch

from evocompress.compression.criteria import STRUCTURED, Statistics
from evocompress.compression.criteria.flap import fluctuations
from evocompress.compression.criteria.structure import Structure, by_part, cut_by_scores
from evocompress.core.errors import LibraryError
from evocompress.testing.structured import SHAPES, structured_example


def spans(structure):
    return [range(i * structure.size, (i + 1) * structure.size) for i in range(structure.items)]


def magnitude_scores(structure, inputs):
    def part(matrices, index):
        rows = slice(index * structure.size, (index + 1) * structure.size)
        return sum(float(matrix[rows].double().abs().sum()) for matrix in matrices)

    items = [part(structure.inputs, item) for item in range(structure.items)]
    return items, [part(structure.shared, group) for group in range(structure.groups)]


def wanda_scores(structure, inputs):
    norms = inputs.double().square().sum((0, 1)).div(len(inputs)).sqrt()
    scores = (structure.output.double().abs() * norms).sum(0)
    return [sum(float(scores[j]) for j in span) for span in spans(structure)], None


def minitron_scores(structure, inputs):
    norms = [inputs[..., j].double().abs().mean(1).norm() for j in range(inputs.shape[2])]
    return [sum(float(norms[j]) ** 2 for j in span) for span in spans(structure)], None


def taylor_scores(structure, inputs):
    split = 1 + len(structure.inputs)
    output, *rest = [gradient.double() for gradient in structure.gradients]

    def rows(matrices, gradients, index):
        places = range(index * structure.size, (index + 1) * structure.size)
        return sum(
            abs(float(matrix[j].double() @ gradient[j]))
            for matrix, gradient in zip(matrices, gradients, strict=True)
            for j in places
        )

    items = [
        rows(structure.inputs, rest[: split - 1], item)
        + sum(abs(float(structure.output[:, j].double() @ output[:, j])) for j in span)
        for item, span in enumerate(spans(structure))
    ]
    shared = [rows(structure.shared, rest[split - 1 :], group) for group in range(structure.groups)]
    return items, shared


def flap_scores(structure, inputs):
    rows = inputs.flatten(0, 1).double()
    weights = structure.output.double().square().sum(0)
    wifv = [float(rows[:, j].var(correction=0) * weights[j]) for j in range(rows.shape[1])]
    return [sum(wifv[j] ** 2 for j in span) for span in spans(structure)], None


REFERENCES = {
    "magnitude": magnitude_scores,
    "wanda": wanda_scores,
    "minitron": minitron_scores,
    "taylor": taylor_scores,
    "flap": flap_scores,
}


def best(structure, items, shared, width):
    """Kept items: the best groups by sum, and the best items of each."""
    per_group = structure.full[1]
    members = [range(g * per_group, (g + 1) * per_group) for g in range(structure.groups)]
    totals = [
        sum(items[i] for i in members[g]) + (shared[g] if shared else 0.0)
        for g in range(structure.groups)
    ]
    groups = sorted(range(structure.groups), key=lambda g: -totals[g])[: width[0]]
    return sorted(
        i for g in groups for i in sorted(members[g], key=lambda i: -items[i])[: width[1]]
    )


def test_every_criterion_has_a_reference():
    assert {*REFERENCES, "obs_structured"} == set(STRUCTURED.built_in)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", REFERENCES)
def test_the_best_items_stay_as_they_are(name, shape):
    example = structured_example(SHAPES[shape], seed=7)
    structure, widths = example.structure, SHAPES[shape].widths
    scores = REFERENCES[name](structure, example.inputs)
    for width, cut in zip(widths, example.cut(STRUCTURED[name], widths), strict=True):
        assert cut.items.tolist() == best(structure, *scores, width), width
        columns = [j for i in cut.items.tolist() for j in spans(structure)[i]]
        assert torch.equal(cut.weight, structure.output[:, columns])


def test_what_a_group_shares_counts_for_the_group():
    example = structured_example(SHAPES["gqa"])
    structure = example.structure
    louder = torch.ones(structure.groups * structure.size, 1)
    for group in range(structure.groups):
        scale = louder.clone()
        scale[group * structure.size : (group + 1) * structure.size] = 100
        shared = tuple(matrix * scale for matrix in structure.shared)
        changed = Structure(structure.output, structure.size, 2, structure.inputs, shared)
        (cut,) = STRUCTURED["magnitude"].cut(changed, Statistics(), [(1, 4)])
        assert cut.groups.tolist() == [group]


@pytest.mark.parametrize("shape", ["mlp", "mlp with bias", "gqa", "gqa with bias"])
def test_flap_keeps_the_mean_output(shape):
    example = structured_example(SHAPES[shape])
    structure, rows = example.structure, example.inputs.flatten(0, 1).double()
    own = 0 if structure.bias is None else structure.bias.double()
    dense = rows @ structure.output.double().T + own
    for width in SHAPES[shape].widths[1:]:
        (cut,) = example.cut(STRUCTURED["flap"], [width])
        kept = rows[:, structure.columns(cut.items)]
        narrow = kept @ cut.weight.double().T + cut.bias.double()
        torch.testing.assert_close(narrow.mean(0), dense.mean(0), rtol=1e-5, atol=1e-5)


def test_flap_turns_a_constant_channel_into_bias_without_error():
    example = structured_example(SHAPES["mlp"])
    example.inputs[..., 11] = 30.0
    (cut,) = example.cut(STRUCTURED["flap"], [(1, 39)])
    assert 11 not in cut.items.tolist()
    torch.testing.assert_close(cut.bias, 30 * example.structure.output[:, 11])


def test_fluctuations_are_never_negative():
    rows = torch.full((1000, 3), 0.1) * torch.tensor([1.0, 1e4, 1e-4])
    statistics = Statistics(None, rows.square().sum(0), 1, 1000, sums=rows.sum(0))
    assert bool((fluctuations(torch.ones(2, 3), statistics) >= 0).all())


@pytest.mark.parametrize("name", ["wanda", "flap"])
def test_squares_do_instead_of_a_gram_matrix(name):
    example = structured_example(SHAPES["gqa"])
    full, widths = example.statistics, SHAPES["gqa"].widths
    squares = Statistics(None, full.gram.diagonal(), full.sequences, full.tokens, sums=full.sums)
    by_squares = STRUCTURED[name].cut(example.structure, squares, widths)
    for one, other in zip(by_squares, example.cut(STRUCTURED[name], widths), strict=True):
        assert torch.equal(one.items, other.items)


def test_equal_scores_are_decided_by_position():
    structure = Structure(torch.ones(2, 6), 1, 2)
    (cut,) = cut_by_scores(structure, [(1, 2)], torch.ones(6))
    assert cut.groups.tolist() == [1] and cut.items.tolist() == [4, 5]


def test_parts_are_summed_over_matrices_of_any_size():
    rows = [torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0, 3.0, 4.0])]
    assert by_part(rows, 2).tolist() == [4.0, 9.0]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("wanda", "squared norms"),
        ("minitron", "magnitudes"),
        ("taylor", "gradients"),
        ("flap", "squared norms"),
        ("obs_structured", "Gram"),
    ],
)
def test_missing_statistics_are_refused(name, words):
    structure = Structure(torch.ones(2, 6), 1, 1, (torch.ones(6, 2),))
    with pytest.raises(ValueError, match=words):
        STRUCTURED[name].cut(structure, Statistics(sequences=1, tokens=1), [(1, 3)])


@pytest.mark.parametrize("name", STRUCTURED.built_in)
def test_values_that_are_not_finite_are_refused(name):
    example = structured_example(SHAPES["gqa"])
    example.inputs[0, 0, 0] = torch.inf
    example.structure.inputs[0][0, 0] = torch.nan
    with pytest.raises(LibraryError, match="not finite"):
        example.cut(STRUCTURED[name], [(1, 1)])


def test_means_need_sums():
    with pytest.raises(ValueError, match="sums"):
        _ = Statistics(squares=torch.ones(3), sequences=1, tokens=4).variances

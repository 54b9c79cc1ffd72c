"""What rounding the inputs of matrices does, to first and second order, against differences."""

import copy

import pytest
import torch

from evocompress.compression.library import build_library
from evocompress.compression.live_model import LiveModel
from evocompress.compression.rounded_inputs import ROUNDING, round_tokens
from evocompress.core.config import LibraryConfig
from evocompress.core.types import DENSE, Candidate, Level
from evocompress.evaluation.estimates import ESTIMATES
from evocompress.evaluation.estimates.base import Subject
from evocompress.evaluation.estimates.changes import wide_form
from evocompress.evaluation.estimates.score import uniforms
from evocompress.testing.plain_library import PlainLibrary
from evocompress.testing.tiny import tiny_loaded

TYPED = Level(bits="w8a8")
NARROW = {"model.layers.1.mlp": Level(channels=40)}
STEP = 1e-2


def sequences():
    return [torch.randint(256, (2, 12), generator=torch.Generator().manual_seed(3))]


def matrices_of(live):
    return [name for name, unit in live.units.items() if unit.kind == "matrix"]


def change_of(model, name, kept, ids):
    """What rounding does to the inputs of a matrix, in the model's own precision."""
    read = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda _, given: read.extend(given))
    model(ids)
    hook.remove()
    return (round_tokens(read[0], kept) - read[0]).double()


def derivatives(model, dense, name, change, ids, candidate):
    """Of the divergence and of the score by the share of one matrix's rounding, in float64."""
    positions, module = ids.shape[1] - 1, model.get_submodule(name)
    reference = dense(ids).logits[0, :-1].log_softmax(-1)
    now = model(ids).logits[0, :-1].softmax(-1).cumsum(-1)
    drawn = (now < uniforms(ids, candidate, positions)).sum(-1)
    ends = []
    for share in (STEP, -STEP):
        moved = share * change
        hook = module.register_forward_pre_hook(lambda _, given, by=moved: (given[0] + by,))
        logs = model(ids).logits[0, :-1].log_softmax(-1)
        hook.remove()
        divergence = (reference.exp() * (reference - logs)).sum() / positions
        ends.append((divergence, logs.gather(-1, drawn[:, None]).sum() / positions**0.5))
    return [float(there - back) / (2 * STEP) for there, back in zip(*ends, strict=True)]


@pytest.mark.parametrize("levels", [{}, NARROW], ids=["dense", "narrow"])
@torch.no_grad()
def test_inner_products_are_derivatives_by_the_share_that_is_rounded(levels):
    """The library's weights are the dense ones, so that nothing else changes."""
    loaded, candidate = tiny_loaded("llama"), Candidate(tuple(levels.items()))
    with LiveModel(loaded, PlainLibrary(loaded)) as live:
        names = [name for name in matrices_of(live) if live.units[name].block < 2]
        asked = {name: (DENSE, TYPED) for name in names}
        rows = ESTIMATES["linearised"](Subject(live, sequences(), candidate, asked))
        dense = copy.deepcopy(loaded.model).double()
        with wide_form(live, candidate, {}) as wide:
            single = copy.deepcopy(loaded.model)
            cut = {n: wide.values(live.units[n], DENSE)[f"{n}.weight"].kept for n in names}
        model = copy.deepcopy(single).double()
        assert (len(levels) > 0) == any(kept is not None for kept in cut.values())
        for name in names:
            table = torch.tensor(rows[name]).view(2, 2, 2)
            assert not table[:, 0].any()
            for sequence, ids in enumerate(sequences()[0].split(1)):
                change = change_of(single, name, cut[name], ids)
                expected = derivatives(model, dense, name, change, ids, candidate)
                found = table[:, 1, sequence].tolist()
                assert found == pytest.approx(expected, rel=1e-2, abs=4e-5), name


def test_to_round_no_more_is_the_opposite():
    """At a candidate that rounds, of one and the same gradient."""
    loaded = tiny_loaded("llama")
    with LiveModel(loaded, PlainLibrary(loaded)) as live:
        name = "model.layers.2.mlp.down_proj"  # behind it nothing else is rounded
        asked = {name: (TYPED, DENSE)}
        there = Candidate(((name, TYPED),))
        rows = ESTIMATES["linearised"](Subject(live, sequences(), there, asked))
        away = ESTIMATES["linearised"](Subject(live, sequences(), Candidate(), asked))
    slopes, scores = torch.tensor(rows[name]).view(2, 2, 2)
    assert not slopes[0].any() and not scores[0].any()
    others = torch.tensor(away[name]).view(2, 2, 2)[1]
    assert not others[1].any()
    assert (slopes[1] < 0).all()  # of the divergence, which is least without


def test_the_wide_form_rounds_as_the_narrow_model():
    loaded, (ids,) = tiny_loaded("llama"), sequences()
    with LiveModel(loaded, PlainLibrary(loaded)) as live:
        typed = dict.fromkeys(matrices_of(live), TYPED)
        candidate = Candidate(tuple(sorted({**typed, **NARROW}.items())))
        live.apply(candidate)
        expected = loaded.model(ids).logits
        live.restore()
        dense = loaded.model(ids).logits
        for asked in ({}, {name: (TYPED, DENSE) for name in typed}):
            with wide_form(live, candidate, asked):
                found = loaded.model(ids).logits
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(loaded.model(ids).logits, dense)
        assert not any(hasattr(module, ROUNDING) for module in loaded.model.modules())
        assert not any(module._forward_pre_hooks for module in loaded.model.modules())


def test_half_the_mean_square_tells_the_divergence_of_weights_and_inputs(tmp_path):
    loaded = tiny_loaded("llama")
    names = [u.name for u in loaded.family.units(loaded.model) if u.kind == "matrix"]
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 250, (8, 32), generator=generator)
    wanted = {name: [DENSE, TYPED] for name in names}
    library = build_library(loaded, wanted, tokens, "t", LibraryConfig(), tmp_path, batch=4)
    batches = [torch.randint(256, (1, 24), generator=generator) for _ in range(60)]
    candidate = Candidate(tuple(sorted(dict.fromkeys(names, TYPED).items())))
    asked = dict.fromkeys(names, (TYPED,))
    with LiveModel(loaded, library) as live:
        rows = ESTIMATES["curvature"](Subject(live, batches, Candidate(), asked))
        dense = [loaded.model(ids).logits[:, :-1].double().log_softmax(-1) for ids in batches]
        live.apply(candidate)
        other = [loaded.model(ids).logits[:, :-1].double().log_softmax(-1) for ids in batches]
        pairs = zip(dense, other, strict=True)
        found = [float((p.exp() * (p - q)).sum(-1).mean().detach()) for p, q in pairs]
    scores = torch.tensor([rows[name] for name in names]).sum(0)
    estimate = 0.5 * float(scores.square().mean())
    print("estimate", estimate, "divergence", sum(found) / len(found))
    assert estimate == pytest.approx(sum(found) / len(found), rel=0.3)

"""Slopes and scores of levels against finite differences in float64."""

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from evocompress.compression.live_model import LiveModel
from evocompress.core.types import DENSE, DROP, Candidate, Level
from evocompress.evaluation.estimates import ESTIMATES
from evocompress.evaluation.estimates.base import Subject
from evocompress.evaluation.estimates.changes import wide_form
from evocompress.evaluation.estimates.score import sampled_score, uniforms
from evocompress.models.backward import Outputs
from evocompress.testing.plain_library import PlainLibrary
from evocompress.testing.tiny import tiny_loaded

STEPS = {"llama": 1e-2, "phi3": 1e-2, "qwen3": 1e-2, "gpt2": 1e-5, "opt": 1e-5}
"""Of the way to a level. RMS norms round to float32 inside, which a small step would measure;
OPT's ReLU has kinks, over which a large one would go."""


LONG = [pytest.param(name, marks=pytest.mark.long) for name in ("phi3", "opt")]


def sequences():
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(256, (2, 12), generator=generator)]


@pytest.fixture(params=["llama", "gpt2", "qwen3", *LONG])
def live(request):
    loaded = tiny_loaded(request.param)
    with LiveModel(loaded, PlainLibrary(loaded)) as live:
        yield live


def asked(live):
    """Some levels of a matrix, an attention and an MLP, in the first and in the last block."""
    path = live.loaded.family.layers_path
    has_bias = any(unit.bias for unit in live.units.values() if unit.columns)
    levels = {}
    for block in (0, 2):
        attention, mlp = f"{path}.{block}.attention", f"{path}.{block}.mlp"
        bias = block == 2 and not has_bias
        levels[attention] = (DENSE, Level(kv_groups=1, group_heads=1, bias=bias), DROP)
        levels[mlp] = (DENSE, Level(channels=40), Level(channels=24), DROP)
    for name, unit in live.units.items():
        if unit.kind == "matrix" and unit.block == 1:
            levels[name] = (Level(zeros=unit.numel // 4), Level(zeros=unit.numel // 2))
        if unit.kind == "outer":
            levels[name] = (DENSE, Level(bits="q8_0"))
    return levels


def somewhere(live):
    """A candidate with a narrow attention, a narrow MLP, a dropped one, and zeros."""
    path = live.loaded.family.layers_path
    levels = asked(live)
    chosen = {
        f"{path}.0.attention": levels[f"{path}.0.attention"][1],
        f"{path}.2.mlp": levels[f"{path}.2.mlp"][2],
        f"{path}.1.mlp": DROP,
    }
    chosen |= {
        name: options[0]
        for name, options in levels.items()
        if live.units[name].kind == "matrix" and live.units[name].parent != f"{path}.1.mlp"
    }
    return Candidate(tuple(sorted(chosen.items())))


def parameters_at(live, candidate, unit, level):
    """The wide model's parameters, in float64, with one unit at another level."""
    with wide_form(live, candidate, asked(live)) as wide:
        tensors = {n: p.detach().double() for n, p in live.loaded.model.named_parameters()}
        values = wide.values(live.units[unit], level)
        for name in {
            key for option in asked(live)[unit] for key in wide.values(live.units[unit], option)
        }:
            like = tensors[name]
            tensors[name] = values[name].whole(like) if name in values else torch.zeros_like(like)
        model = copy.deepcopy(live.loaded.model).double()
    return model, {name: tensor.double() for name, tensor in tensors.items()}


def log_probabilities(model, tensors, ids):
    logits = torch.func.functional_call(model, tensors, (ids,)).logits
    return logits[0, :-1].log_softmax(-1)


def slope_along(step, start, end, value):
    """The derivative of `value(tensors)` on the way from start to end, by Richardson."""

    def difference(width):
        there, back = (
            value({n: t + move * (end[n] - t) for n, t in start.items()})
            for move in (width, -width)
        )
        return float(there - back) / (2 * width)

    return (4 * difference(step / 2) - difference(step)) / 3


def test_inner_products_are_derivatives_along_the_change(live):
    candidate, levels = somewhere(live), asked(live)
    rows = ESTIMATES["linearised"](Subject(live, sequences(), candidate, levels))
    dense = copy.deepcopy(live.loaded.model).double()
    for name, options in levels.items():
        now = candidate.by_name.get(name, DENSE)
        gone = now.drop or candidate.by_name.get(live.units[name].parent, DENSE).drop
        table = torch.tensor(rows[name]).view(-1, len(options), 2)
        if gone:
            assert not table.any()
            continue
        model, start = parameters_at(live, candidate, name, now)
        for level, option in enumerate(options):
            _, end = parameters_at(live, candidate, name, option)
            for sequence, ids in enumerate(sequences()[0].split(1)):
                expected = derivatives(model, dense, start, end, ids, candidate)
                if gone:
                    expected = [0.0, 0.0]
                found = table[:, level, sequence].tolist()
                assert found == pytest.approx(expected, rel=5e-3, abs=2e-4), (
                    name,
                    option,
                )


def test_one_pass_for_both_gives_the_same(live):
    subject = Subject(live, sequences(), somewhere(live), asked(live))
    slopes, scores, both = (
        ESTIMATES[kind](subject) for kind in ("slope", "curvature", "linearised")
    )
    assert both == {name: slopes[name] + scores[name] for name in both}


def derivatives(model, dense, start, end, ids, candidate):
    """Of the divergence per position, and of the score over the root of the positions."""
    positions = ids.shape[1] - 1
    reference = log_probabilities(dense, {}, ids).detach()
    now = log_probabilities(model, start, ids).exp().cumsum(-1)
    drawn = (now < uniforms(ids, candidate, positions)).sum(-1)

    def divergence(tensors):
        logs = log_probabilities(model, tensors, ids)
        return (reference.exp() * (reference - logs)).sum() / positions

    def likelihood(tensors):
        logs = log_probabilities(model, tensors, ids)
        return logs.gather(-1, drawn[:, None]).sum() / positions**0.5

    step = STEPS[model.config.model_type]
    return [slope_along(step, start, end, value) for value in (divergence, likelihood)]


def test_the_wide_form_computes_the_same(live):
    candidate, ids = somewhere(live), sequences()[0]
    live.apply(candidate)
    expected = live.loaded.model(ids).logits
    before = {name: tensor.clone() for name, tensor in live.loaded.model.state_dict().items()}
    with wide_form(live, candidate, asked(live)):
        found = live.loaded.model(ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    live.apply(candidate)
    after = live.loaded.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_shared_expert_has_its_full_width_beside_narrow_ones():
    loaded, mlp = tiny_loaded("qwen2_moe"), "model.layers.1.mlp"
    down, narrow = f"{mlp}.shared_expert.down_proj", Level(channels=40)
    asked = {mlp: (DENSE, narrow, DROP), down: (Level(zeros=2000), Level(zeros=4000))}
    candidate = Candidate(((mlp, narrow), (down, asked[down][0])))
    with LiveModel(loaded, PlainLibrary(loaded)) as live:
        live.apply(candidate)
        expected = loaded.model(sequences()[0]).logits
        with wide_form(live, candidate, asked) as wide:
            torch.testing.assert_close(loaded.model(sequences()[0]).logits, expected)
            for level in asked[down]:
                value = wide.values(live.units[down], level)[f"{down}.weight"]
                assert value.kept is None
                assert int((value.tensor == 0).sum()) == level.zeros
            named = [f"{down}.weight" in wide.values(live.units[mlp], o) for o in asked[mlp]]
            assert named == [True, True, False]
        rows = ESTIMATES["linearised"](Subject(live, sequences(), candidate, asked))
    table = torch.tensor(rows[down]).view(2, 2, 2)
    assert not table[:, 0].any() and table[:, 1].all()


def test_drawn_tokens_follow_the_model():
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05]).repeat(4000, 1)
    ids = torch.zeros(1, 4001, dtype=torch.int64)
    gradient = sampled_score(ids, Candidate(), 4000)(Outputs(probabilities.log()), slice(0, 4000))
    drawn = (gradient + probabilities).mean(0)
    torch.testing.assert_close(drawn, probabilities[0], rtol=0, atol=0.025)
    torch.testing.assert_close(gradient.sum(-1), torch.zeros(4000), rtol=0, atol=1e-6)


@pytest.mark.long
def test_half_the_mean_square_is_the_divergence_of_a_small_change():
    loaded = tiny_loaded("llama", dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with LiveModel(loaded, SlightLibrary(loaded)) as live:
        unit = f"{loaded.family.layers_path}.1.mlp.down_proj"
        level = Level(zeros=1)
        batches = [torch.randint(256, (1, 16), generator=generator) for _ in range(400)]
        rows = ESTIMATES["curvature"](Subject(live, batches, Candidate(), {unit: (level,)}))
        with torch.no_grad():
            dense = [loaded.model(ids).logits.log_softmax(-1)[:, :-1] for ids in batches]
            live.apply(Candidate(((unit, level),)))
            other = [loaded.model(ids).logits.log_softmax(-1)[:, :-1] for ids in batches]
    divergences = [
        float((p.double().exp() * (p.double() - q.double())).sum(-1).mean())
        for p, q in zip(dense, other, strict=True)
    ]
    estimate = 0.5 * torch.tensor(rows[unit]).square().mean()
    assert float(estimate) == pytest.approx(sum(divergences) / len(divergences), rel=0.25)


class SlightLibrary(PlainLibrary):
    """Its only level moves every weight a little."""

    def load(self, unit, level, width=DENSE):
        weight = self.dense[unit]
        noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
        return {"weight": weight + 0.02 * weight.std() * noise}


class Reads(TorchDispatchMode):
    """Counts numbers that are read one by one, for each of which a GPU would be waited for."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += operation is torch.ops.aten._local_scalar_dense.default
        return operation(*args, **kwargs or {})


def test_products_are_not_read_one_by_one():
    loaded, (ids,) = tiny_loaded("llama"), sequences()
    with LiveModel(loaded, PlainLibrary(loaded)) as live, Reads() as reads:
        levels = asked(live)
        ESTIMATES["linearised"](Subject(live, [ids], Candidate(), levels))
    passes = 1 + 2 * len(ids)
    assert reads.count <= passes < sum(map(len, levels.values()))

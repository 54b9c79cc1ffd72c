"""Every estimate against the contract, on every family."""

from itertools import product

import pytest
import torch

from evocompress.compression.live_model import LiveModel
from evocompress.core.requests import Estimate
from evocompress.core.types import Candidate
from evocompress.evaluation.estimates import ESTIMATES
from evocompress.evaluation.estimates.answer import LiveEstimates
from evocompress.evaluation.estimates.base import Subject
from evocompress.testing import estimates as contract
from evocompress.testing.proxies import dropped
from evocompress.testing.tiny import DECODERS, MIXTURES, VARIED, tiny_loaded


def batches(count=3):
    """Micro-batches of random tokens, the last one smaller."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(256, (2 if i else 1, 20), generator=generator) for i in range(count)]


@pytest.fixture
def llama(request):
    """A Llama; a mixture of experts for the kinds that are about experts."""
    kinds = {request.getfixturevalue(n) for n in ("kind", "running") if n in request.fixturenames}
    return tiny_loaded("mixtral" if kinds & set(contract.OF_EXPERTS) else "llama")


RUN_NO_MODEL = {"magnitude", "lamp", "tail_exponent", "pq_index", "output_error"}


@pytest.fixture(params=sorted(ESTIMATES))
def kind(request):
    return request.param


@pytest.fixture(params=sorted(ESTIMATES.keys() - RUN_NO_MODEL))
def running(request):
    """A kind that runs the model."""
    return request.param


def test_every_estimate_has_a_reference():
    assert ESTIMATES.keys() == contract.REFERENCES.keys()


SLOW_ON_EXPERTS = {"perturbation", "lamp", "outliers"}
"""Their brute force goes through the matrices of every expert one by one."""


def of_models():
    """Every kind with every family that has it."""
    for kind, name in product(sorted(ESTIMATES), DECODERS):
        mixture = name in MIXTURES
        if mixture or kind not in contract.OF_EXPERTS:
            long = name not in VARIED or mixture and kind in SLOW_ON_EXPERTS
            yield pytest.param(kind, name, marks=pytest.mark.long if long else ())


@pytest.mark.parametrize(("kind", "model_type"), of_models())
def test_values_are_those_of_brute_force(kind, model_type):
    loaded = tiny_loaded(model_type)
    tolerance = contract.TOLERANCES.get(kind, contract.TOLERANCE)
    contract.check_matches_reference(
        ESTIMATES[kind], contract.REFERENCES[kind], loaded, batches(), tolerance
    )


def test_history_does_not_matter(kind, llama):
    other = dropped(llama, "0.attention", "1.mlp")
    contract.check_history_does_not_matter(ESTIMATES[kind], llama, batches(), other)


@pytest.mark.parametrize("name", ["block_influence", "taylor", "fluctuation"])
@pytest.mark.parametrize("model_type", ["llama", "opt", "gpt2", "gemma2"])
def test_what_is_dropped_has_no_influence(name, model_type):
    loaded = tiny_loaded(model_type)
    candidate = dropped(loaded, "0.attention", "1.attention", "1.mlp", "2.mlp")
    contract.check_dropped_has_no_influence(ESTIMATES[name], loaded, batches(), candidate)


def test_no_distance_over_a_dropped_block(llama):
    candidate = dropped(llama, "1.attention", "1.mlp")
    with LiveModel(llama) as live:
        rows = ESTIMATES["angular_distance"](Subject(live, batches(), candidate))
    assert [len(row) for row in rows.values()] == [3, 2, 1]
    assert rows["model.layers.1"][0] < 1e-6
    assert rows["model.layers.0"][1] == pytest.approx(rows["model.layers.0"][0])


def test_bfloat16_gradients_are_summed_in_float32():
    loaded = tiny_loaded("llama", dtype=torch.bfloat16)
    many = batches(1) * 40
    with LiveModel(loaded) as live:
        once = ESTIMATES["taylor"](Subject(live, many[:1], Candidate()))
        often = ESTIMATES["taylor"](Subject(live, many, Candidate()))
    for name, (value,) in once.items():
        # Forty gradients, each a fortieth: a sum kept in bfloat16 would be off by percents.
        assert often[name][0] == pytest.approx(value, rel=0.01)


class TestAnswers:
    def test_an_answer_uses_the_micro_batches_that_were_asked_for(self, kind, llama):
        request = Estimate(dropped(llama, "1.mlp"), kind, (2, 0))
        with LiveModel(llama) as live:
            answer = LiveEstimates(live, batches(), contract.drops(live)).estimate(request)
            chosen = [batches()[2], batches()[0]]
            subject = contract.subject_of(live, chosen, request.candidate)
            assert answer.by_unit == ESTIMATES[kind](subject)
        assert answer.request == request
        assert answer.failed is None

    def test_memory_that_does_not_suffice_is_a_failure(self, running, llama, monkeypatch):
        def full(*_):
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(llama.family, "hidden_states", full)
        with LiveModel(llama) as live:
            request = Estimate(dropped(llama, "1.mlp"), running, (0,))
            answer = LiveEstimates(live, batches(), contract.drops(live)).estimate(request)
            assert answer.failed == "out of memory"
            assert live.current == Candidate()
        assert not any(parameter.requires_grad for parameter in llama.model.parameters())

    def test_other_errors_are_not_hidden(self, running, llama, monkeypatch):
        def wrong(*_):
            raise RuntimeError("shapes do not match")

        monkeypatch.setattr(llama.family, "hidden_states", wrong)
        with LiveModel(llama) as live, pytest.raises(RuntimeError, match="shapes"):
            LiveEstimates(live, batches(), contract.drops(live)).estimate(
                Estimate(Candidate(), running, (0,))
            )

    @pytest.mark.parametrize(
        "kind", sorted(ESTIMATES.keys() - {"output_error", *contract.OF_EXPERTS})
    )
    def test_values_that_are_not_finite_are_a_failure(self, kind):
        loaded = tiny_loaded("llama")
        loaded.model.get_parameter("model.layers.0.mlp.up_proj.weight")[0, 0] = float("nan")
        with LiveModel(loaded) as live:
            answer = LiveEstimates(live, batches(), contract.drops(live)).estimate(
                Estimate(Candidate(), kind, (0,))
            )
        assert "is not finite" in answer.failed
        assert answer.rows == ()

    def test_an_unknown_kind_is_refused(self, llama):
        with LiveModel(llama) as live, pytest.raises(ValueError, match="unknown estimate 'luck'"):
            LiveEstimates(live, batches(), contract.drops(live)).estimate(
                Estimate(Candidate(), "luck", (0,))
            )

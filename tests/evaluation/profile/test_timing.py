"""What a timed forward pass runs; how long it takes is the machine's business."""

import pytest

from evocompress.compression.live_model import LiveModel
from evocompress.core.types import DROP, Candidate
from evocompress.evaluation.heldout import measure_latency
from evocompress.evaluation.profile import timing
from evocompress.export import materialize
from evocompress.export.reload import read_checkpoint
from evocompress.testing.tiny import tiny_loaded, tiny_model


@pytest.fixture
def calls():
    """A tiny model, and the shape of the ids of every call of it."""
    model, shapes = tiny_model("llama"), []

    def record(module, positional, keywords):
        ids = positional[0] if positional else keywords["input_ids"]
        cache = keywords.get("past_key_values")
        shapes.append((*ids.shape, cache.get_seq_length() if cache else 0))

    model.register_forward_pre_hook(record, with_kwargs=True)
    return model, shapes


def test_a_prefill_is_one_call(calls):
    model, shapes = calls
    run = timing.prefill(model, 2, 5)
    assert run() > 0
    assert shapes == [(2, 5, 0)]


def test_decoding_starts_at_the_context(calls):
    model, shapes = calls
    run = timing.decoding(model, 3, 7)
    assert run() > 0
    assert shapes == [(3, 7, 0), *((3, 1, 7 + step) for step in range(1 + timing.STEPS))]
    assert 1 + timing.STEPS <= timing.UNTIMED_STEPS + timing.STEPS


def test_decoding_takes_the_median_step(calls, monkeypatch):
    times = iter([9.0, 1.0, 2.0, 3.0, 1.0, 8.0, 2.0, 2.0])
    monkeypatch.setattr(timing, "cpu_seconds", lambda call: next(times))
    assert timing.decoding(calls[0], 1, 4)() == 2.0


def test_only_a_gpu_has_graphs():
    assert not timing.can_be_captured(tiny_model("llama"))


def test_a_candidate_is_timed_alike_in_place_and_as_its_checkpoint(tmp_path):
    """Trainable and frozen weights take different kernels for a single position."""
    loaded = tiny_loaded()
    candidate = Candidate((("model.layers.1.mlp", DROP), ("model.layers.2.attention", DROP)))
    written = read_checkpoint(
        materialize(loaded, None, candidate, tmp_path / "checkpoint"), loaded.model
    )
    with LiveModel(loaded) as live:
        live.apply(candidate)
        in_place = trainable_when_timed(loaded.model)
    assert in_place == trainable_when_timed(written) == {True}
    assert {parameter.requires_grad for parameter in loaded.model.parameters()} == {False}


def trainable_when_timed(model):
    """``requires_grad`` of all weights, in every forward pass of every way of timing."""
    seen = set()
    hook = model.register_forward_pre_hook(
        lambda module, _: seen.update(weight.requires_grad for weight in module.parameters())
    )
    timing.prefill(model, 1, 4)()
    timing.decoding(model, 1, 4)()
    measure_latency({"it": model}, prefill=(1, 4), decode=(2, 2), repeats=1)
    hook.remove()
    return seen


@pytest.mark.gpu
def test_the_trial_capture_runs_as_the_timed_steps_do():
    model, seen = tiny_model("llama").to("cuda"), set()
    model.register_forward_pre_hook(
        lambda module, _: seen.update(weight.requires_grad for weight in module.parameters())
    )
    assert timing.can_be_captured(model)
    assert seen == {True}


@pytest.mark.gpu
def test_a_captured_step_takes_less_time():
    model = tiny_model("llama").to("cuda")
    assert timing.can_be_captured(model)
    graph, eager = timing.decoding(model, 1, 16, graph=True), timing.decoding(model, 1, 16)
    assert 0 < min(graph() for _ in range(5)) < min(eager() for _ in range(5))


@pytest.mark.gpu
def test_a_prefill_on_a_gpu_is_timed_by_events():
    assert timing.prefill(tiny_model("llama").to("cuda"), 1, 16)() > 0

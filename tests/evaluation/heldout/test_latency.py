import itertools

import pytest
import torch

from evocompress.core.config import EvaluateConfig
from evocompress.core.errors import ConfigError
from evocompress.evaluation.heldout import Timing, check_lengths, latency, measure_latency, ratio
from evocompress.testing.decoders import Decoder
from evocompress.testing.tiny import tiny_model


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2", "opt"])
def test_prefill_and_decode_are_timed(model_type: str) -> None:
    models = {"small": tiny_model(model_type, layers=1), "large": tiny_model(model_type, layers=12)}
    answers = measure_latency(models, prefill=(2, 64), decode=(16, 8), repeats=5)
    for timing in (getattr(answers[n], kind) for n in models for kind in ("prefill", "decode")):
        assert 0 < timing.fastest <= timing.median <= timing.slowest
    assert answers["small"].decode.fastest < answers["large"].decode.fastest


def test_models_take_turns_and_the_warm_up_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    models = {name: tiny_model("llama", seed=seed) for seed, name in enumerate("ab")}
    turns: list[str] = []
    seconds = itertools.count(1.0)

    def measured(model: torch.nn.Module, *_: object) -> float:
        turns.append("a" if model is models["a"] else "b")
        return next(seconds)

    monkeypatch.setattr(latency, "_prefill_seconds", measured)
    monkeypatch.setattr(latency, "_decode_seconds", measured)
    answers = measure_latency(models, repeats=3)
    assert turns == ["a", "b", "a", "b", "b", "a", "a", "b"] * 2
    # Seconds 1 and 2 are the warm-up; model a then gets 3, 6, 7.
    assert answers["a"].prefill == Timing(median=6.0, fastest=3.0, slowest=7.0)
    assert answers["b"].decode.ratio == ratio([12.0, 13.0, 16.0], [11.0, 14.0, 15.0])


def test_decoding_is_greedy_with_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    prompt = torch.randint(256, (1, 10), generator=torch.Generator().manual_seed(0))
    fed: list[list[int]] = []
    forward = model.forward

    def recorded(ids: torch.Tensor, **options: object) -> object:
        fed.append(ids[0].tolist())
        return forward(ids, **options)

    monkeypatch.setattr(model, "forward", recorded)
    latency._decode_seconds(model, prompt, 6)
    monkeypatch.undo()
    expected = model.generate(prompt, do_sample=False, max_new_tokens=6, eos_token_id=-1)
    assert fed[0] == prompt[0].tolist()
    assert [ids[0] for ids in fed[1:]] == expected[0, 10:].tolist()
    assert all(len(ids) == 1 for ids in fed[1:])


@pytest.mark.parametrize(
    ("settings", "context", "message"),
    [
        (
            {"prefill": (1, 65), "decode": (8, 8)},
            64,
            r"evaluate\.prefill needs 65 tokens, .* context is 64",
        ),
        (
            {"prefill": (9, 8), "decode": (60, 5)},
            64,
            r"evaluate\.decode needs 65 tokens, .* context is 64",
        ),
    ],
)
def test_texts_longer_than_the_context_are_named(
    settings: dict[str, object], context: int, message: str
) -> None:
    config = EvaluateConfig.model_validate(settings)
    with pytest.raises(ConfigError, match=message):
        check_lengths(config, Decoder(context=context).architecture())
    check_lengths(config, Decoder(context=context + 1).architecture())
    switched_off = config.model_copy(update={"latency": False})
    check_lengths(switched_off, Decoder(context=context).architecture())


def test_models_are_timed_as_users_load_them_and_left_as_they_were():
    model = tiny_model("llama")
    seen = []
    model.get_output_embeddings().register_forward_pre_hook(
        lambda module, _: seen.append(module.weight.requires_grad)
    )
    measure_latency({"frozen": model}, prefill=(1, 8), decode=(4, 2), repeats=1)
    assert seen and all(seen)
    assert not any(parameter.requires_grad for parameter in model.parameters())

import math
import statistics

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from evocompress.evaluation.heldout import Quality, heldout_quality, quality
from evocompress.testing.proxies import reference_kl, reference_loss
from evocompress.testing.tiny import tiny_model

FAMILIES = ("llama", "gpt2", "gemma2", "opt")
IDS = torch.randint(256, (3, 20), generator=torch.Generator().manual_seed(0))


def pair(model_type: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A model and the same one with a little noise on its weights."""
    dense, other = tiny_model(model_type), tiny_model(model_type)
    generator = torch.Generator().manual_seed(1)
    for parameter in other.parameters():
        parameter.mul_(1 + 0.3 * torch.randn(parameter.shape, generator=generator))
    return dense, other


def brute_force(dense: PreTrainedModel, model: PreTrainedModel, top_k: int) -> Quality:
    p, q = (each(IDS, use_cache=False).logits for each in (dense, model))
    rows = list(zip(p[:, :-1], q[:, :-1], IDS, strict=True))
    each = [reference_kl(*row, 256) for row in rows]
    full = [float(values.mean()) for values in each]
    bucketed = [float(reference_kl(*row, top_k).mean()) for row in rows]
    loss = [float(reference_loss(*row, top_k).mean()) for row in rows]
    return Quality(
        kl=statistics.mean(full),
        kl_sd=statistics.stdev(full),
        kl_p99=float(np.percentile(torch.cat(each).numpy(), 99)),
        kl_topk=statistics.mean(bucketed),
        perplexity=math.exp(statistics.mean(loss)),
        sequences=3,
        positions=19,
        kl_per_sequence=tuple(full),
    )


@pytest.mark.parametrize("model_type", FAMILIES)
def test_quality_is_that_of_brute_force(model_type: str) -> None:
    dense, other = pair(model_type)
    answer = heldout_quality(dense, {"other": other}, IDS, top_k=20)["other"]
    expected = brute_force(dense, other, 20)
    assert answer.kl > 0.01 and answer.kl_topk < answer.kl
    assert (answer.sequences, answer.positions) == (3, 19)
    assert answer.kl_per_sequence == pytest.approx(expected.kl_per_sequence, rel=1e-4)
    assert answer.kl_p99 > answer.kl
    for name in ("kl", "kl_sd", "kl_p99", "kl_topk", "perplexity"):
        assert getattr(answer, name) == pytest.approx(getattr(expected, name), rel=1e-4)


def test_models_are_compared_each_on_its_own() -> None:
    dense, other = pair("llama")
    answers = heldout_quality(dense, {"dense": dense, "other": other}, IDS)
    assert answers["other"] == heldout_quality(dense, {"other": other}, IDS)["other"]
    assert answers["dense"].kl == 0.0 and answers["dense"].kl_sd == 0.0
    assert answers["dense"].perplexity == pytest.approx(brute_force(dense, dense, 5).perplexity)


def test_all_tokens_kept_apart_is_the_full_divergence() -> None:
    dense, other = pair("llama")
    answer = heldout_quality(dense, {"other": other}, IDS, top_k=256)["other"]
    assert answer.kl_topk == answer.kl


def test_neither_rows_nor_batches_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    dense, other = pair("llama")
    one = heldout_quality(dense, {"other": other}, IDS)["other"]
    monkeypatch.setattr(quality, "ROWS", 7)
    many = heldout_quality(dense, {"other": other}, IDS, batch=2)["other"]
    assert many.kl_per_sequence == pytest.approx(one.kl_per_sequence, rel=1e-4)
    assert many.perplexity == pytest.approx(one.perplexity, rel=1e-5)


def test_one_sequence_has_no_spread() -> None:
    dense, other = pair("llama")
    answer = heldout_quality(dense, {"other": other}, IDS[:1])["other"]
    assert answer.kl_sd == 0.0 and answer.kl == answer.kl_per_sequence[0]


def test_a_broken_model_is_not_given_a_value() -> None:
    dense, other = pair("llama")
    other.get_input_embeddings().weight.fill_(float("nan"))
    assert math.isnan(heldout_quality(dense, {"other": other}, IDS)["other"].kl)

import math

import pytest
import torch

from evocompress.models.head import bucket_log_probabilities, chunk_rows, output_chunks
from evocompress.testing.tiny import tiny_loaded


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2", "opt"])
def test_chunks_are_the_logits_of_a_plain_forward_pass(
    model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = tiny_loaded(model_type)
    ids = torch.randint(256, (2, 9), generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr("evocompress.models.head.CPU_FLOAT32_LOGIT_BYTES", 5 * 256 * 4)
    hidden = loaded.family.hidden_states(loaded.model, ids)
    chunks = list(output_chunks(loaded.family, loaded.model, hidden))
    assert [len(chunk) for chunk in chunks] == [5, 5, 5, 1]
    assert chunk_rows(loaded.model) == 5
    expected = loaded.model(ids, use_cache=False).logits[:, :-1].flatten(0, 1)
    torch.testing.assert_close(torch.cat(chunks), expected)


def test_buckets_agree_with_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (5 * torch.randn(6, 5000, generator=generator)).bfloat16()
    tokens = logits.topk(40).indices
    top, rest = bucket_log_probabilities(logits, tokens.int())
    exact = logits.double().log_softmax(-1)
    torch.testing.assert_close(top.double(), exact.gather(-1, tokens), rtol=0, atol=3e-6)
    exact_rest = exact.scatter(-1, tokens, -math.inf).logsumexp(-1)
    torch.testing.assert_close(rest.double(), exact_rest, rtol=0, atol=3e-6)


def test_a_vanishing_rest_keeps_its_digits() -> None:
    logits = torch.full((1, 100), -20.0)
    logits[0, 3] = 20.0
    top, rest = bucket_log_probabilities(logits, torch.tensor([[3]]))
    expected = math.log(99) - 40 - math.log1p(99 * math.exp(-40))
    assert rest.item() == pytest.approx(expected, abs=1e-5)
    assert top.item() == pytest.approx(0.0, abs=1e-12)


def test_logits_are_left_as_they_are_and_the_rest_stays_finite_without_tokens() -> None:
    logits = torch.randn(3, 8)
    before = logits.clone()
    top, rest = bucket_log_probabilities(logits, torch.arange(8).repeat(3, 1))
    assert torch.equal(logits, before)
    torch.testing.assert_close(top, logits.log_softmax(-1))
    assert rest.isfinite().all() and (rest < -80).all()

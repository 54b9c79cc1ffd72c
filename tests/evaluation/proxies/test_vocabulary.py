import math
from dataclasses import replace

import pytest
import torch

from evocompress.compression.live_model import LiveModel
from evocompress.core.config import ProxyConfig
from evocompress.core.requests import Evaluate
from evocompress.core.types import DROP, Candidate
from evocompress.evaluation.proxies import make_proxy
from evocompress.models import vocabulary
from evocompress.models.families import Family
from evocompress.testing.tiny import tiny_loaded


@pytest.fixture(params=["llama", "gemma3_text", "opt"])
def setting(request):
    """A model in float32, and states that make its head sure of some tokens."""
    loaded = tiny_loaded(request.param)
    hidden = 8 * torch.randn(7, loaded.model.config.hidden_size, generator=torch.manual_seed(1))
    return loaded.family, loaded.model, hidden


@pytest.mark.parametrize("slices", [1, 3, 256])
def test_slices_agree_with_float64(setting, slices, monkeypatch):
    family, model, hidden = setting
    size = len(model.get_output_embeddings().weight)
    monkeypatch.setattr(vocabulary, "SLICE_BYTES", math.ceil(size / slices) * hidden.shape[0] * 4)
    with torch.inference_mode():
        logits = family.outputs(model, hidden).double()
        exact = logits.log_softmax(-1)
        tokens = vocabulary.likeliest(family, model, hidden, 20)
        top, rest = vocabulary.log_probabilities(family, model, hidden, tokens)
    # Each way of adding up products in float32 rounds otherwise, in units of the largest logit.
    rounding = 4 * torch.finfo(torch.float32).eps * float(logits.abs().max())
    assert tokens.dtype == torch.int32
    wanted = exact.topk(20).indices.sort().values
    assert torch.equal(tokens.long().sort().values, wanted)
    torch.testing.assert_close(top.double(), exact.gather(1, tokens.long()), rtol=0, atol=rounding)
    others = exact.scatter(1, tokens.long(), -math.inf).logsumexp(1)
    torch.testing.assert_close(rest.double(), others, rtol=0, atol=rounding)


def test_a_late_large_logit_and_a_vanishing_rest_keep_their_digits(monkeypatch):
    loaded = tiny_loaded("llama", vocabulary=100)
    head = loaded.model.get_output_embeddings()
    torch.nn.init.zeros_(head.weight)
    head.weight.data[:, 0] = -20.0
    head.weight.data[97, 0] = 20.0
    states = torch.zeros(1, head.weight.shape[1])
    states[0, 0] = 1.0
    monkeypatch.setattr(vocabulary, "SLICE_BYTES", 4 * 10)
    with torch.inference_mode():
        top, rest = vocabulary.log_probabilities(
            loaded.family, loaded.model, states, torch.tensor([[97]])
        )
    assert rest.item() == pytest.approx(math.log(99) - 40, abs=1e-5)
    assert top.item() == pytest.approx(0.0, abs=1e-12)


def test_only_float32_on_a_cpu_goes_in_slices():
    for dtype, expected in ((torch.float32, True), (torch.bfloat16, False)):
        loaded = tiny_loaded(dtype=dtype)
        assert vocabulary.in_slices(loaded.family, loaded.model) == expected


class Scaled(Family):
    """A family with outputs of its own, as Granite has."""

    def outputs(self, model, hidden):
        return super().outputs(model, hidden) / 8.0


def test_outputs_of_a_familys_own_are_what_is_compared():
    plain = tiny_loaded("llama")
    loaded = replace(plain, family=Scaled())
    batch = torch.randint(0, 244, (2, 16), generator=torch.manual_seed(0))
    candidate = Candidate((("model.layers.1.mlp", DROP),))

    def logits():
        return plain.model(batch).logits[:, :-1].flatten(0, 1).double() / 8.0

    with LiveModel(loaded) as live, torch.inference_mode():
        proxy = make_proxy(live, [batch], ProxyConfig(top_k=256))
        [result] = proxy.evaluate([Evaluate(candidate, (0,))])
        live.restore()
        dense = logits().log_softmax(-1)
        live.apply(candidate)
        divergence = (dense.exp() * (dense - logits().log_softmax(-1))).sum(-1).mean()
    assert result.mean == pytest.approx(float(divergence), rel=1e-4)

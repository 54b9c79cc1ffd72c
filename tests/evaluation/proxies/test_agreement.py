import pytest
import torch

from evocompress.compression.live_model import LiveModel
from evocompress.core.config import ProxyConfig
from evocompress.core.requests import Evaluate
from evocompress.evaluation.heldout import heldout_quality
from evocompress.evaluation.proxies import PROXIES, make_proxy
from evocompress.models.loading import LoadedModel, load
from evocompress.testing.proxies import dropped
from evocompress.testing.tiny import tiny_loaded


def check_proxy_is_what_is_reported(
    dense: LoadedModel, loaded: LoadedModel, rel: float, top_k: int
) -> None:
    """The proxy's value of a candidate is what the reporting code finds on the live model."""
    vocabulary = dense.model.config.vocab_size
    ids = torch.randint(vocabulary, (2, 64), generator=torch.Generator().manual_seed(0))
    request = Evaluate(dropped(loaded, "1.mlp", "2.attention"), (0,))
    with LiveModel(loaded) as live:
        means = {
            kind: make_proxy(live, [ids], config).evaluate([request])[0].mean
            for kind in PROXIES.built_in
            for config in [ProxyConfig(kind=kind, top_k=top_k)]
        }
        models = {"live": loaded.model}
        quality = heldout_quality(dense.model, models, ids, batch=2, top_k=top_k)["live"]
    assert quality.kl > 0.01
    assert means["kl"] == pytest.approx(quality.kl_topk, rel=rel)
    assert torch.tensor(means["perplexity"]).exp() == pytest.approx(quality.perplexity, rel=rel)


@pytest.mark.parametrize("model_type", ["llama", "phi3", "gemma2", "gemma3_text", "gpt2", "opt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_proxy_is_what_is_reported(model_type: str, dtype: torch.dtype) -> None:
    dense, loaded = (tiny_loaded(model_type, dtype=dtype) for _ in range(2))
    rel = 1e-4 if dtype is torch.float32 else 1e-2
    check_proxy_is_what_is_reported(dense, loaded, rel, top_k=30)


@pytest.mark.real
def test_proxy_is_what_is_reported_of_a_real_model() -> None:
    dense, loaded = (load("demo:smollm2-135m") for _ in range(2))
    check_proxy_is_what_is_reported(dense, loaded, rel=1e-2, top_k=256)
